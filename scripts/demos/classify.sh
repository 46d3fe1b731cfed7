# The category of what sounds: two look-alikes, one of them still.
dataset=avsbench_s4
clips=demo/clips_twins
clip_flags=(--setting=twins --kind=still --train=240 --val=60 --test=60 --size=96)
records=demo/tfds_twins
