"""What a forward takes of each modality: text, images, audio, video, and their placeholders."""
