"""int8 quantisation of OpenVINO graphs."""
