"""Stage `sample`: K anchors a prompt from the frozen initial policy. Also the public `sample_anchors`."""
