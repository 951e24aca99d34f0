"""What the neurons that stay have to do once the others are gone: solved for, without labels."""
