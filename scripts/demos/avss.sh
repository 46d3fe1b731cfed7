# AVSBench AVSS: a class for every pixel. Starts from the same model on S4.
dataset=avsbench_semantic
clips=demo/clips_avss
clip_flags=(--setting=avss)
starts_from=s4_${recipe#*_}
