"""What decides how many experts an image needs: a last stage of each experience, one file per router."""
