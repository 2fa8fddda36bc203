"""Model families as OpenVINO graphs."""
