"""Request bodies by API: what a client may send, the task that it means, and the reply that the API has for it."""
