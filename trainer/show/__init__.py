"""Pictures: contact sheets and video files."""
