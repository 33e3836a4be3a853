"""Complete examples of what the plugin is for."""
