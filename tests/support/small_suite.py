"""The first part of a suite on the real drawings whose cells take seconds; algorithms follow."""

HEAD = """
summary = "for a test"
seeds = 1

[recipe]
steps = 12
validate_every = 4
validation_episodes = 6

[recipes.supervised]
steps = 8
batch_size = 8
validate_every = 0
select = "last"

[[dataset]]
name = "quickdraw"

[[protocol]]
ways = 5
shots = 1
queries = 3
episodes = 10

[[backbone]]
name = "conv4"
label = "conv4-4"
hyperparameters = {width = 4, downsample = "stride"}
"""
