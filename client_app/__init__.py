"""The hospital: images, training, policy and the one door out. Never imports the coordinator's side."""
