"""What the Qwen components for Haystack share. Import the components from where they are; this is not public."""
