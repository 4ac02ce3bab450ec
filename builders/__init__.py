"""The one place where a config becomes objects: one file a section. Nothing below this folder sees a whole config."""
