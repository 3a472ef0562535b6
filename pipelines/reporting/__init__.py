"""What the page of `report` shows, gathered from the files of the other stages."""
