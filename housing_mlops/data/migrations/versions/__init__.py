"""The forms that the table of the feature store has had."""
