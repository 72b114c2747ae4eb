complete -c knet-train -l out -d 'Folder of the run, instead of the configuration\'s' -r -F
complete -c knet-train -l overfit -d 'Learn the first N labelled images by heart, without augmentation: can the model learn at all?' -r
complete -c knet-train -l check -d 'Open the data sets, say what they hold, and train nothing; with N, make so many samples and say how fast the loader\'s threads are' -r
complete -c knet-train -l time-limit -d 'Stop, saved, after so many minutes' -r
complete -c knet-train -l threads -d 'Threads of the training step; 0 for one per core' -r
complete -c knet-train -l device -d 'Where to train: cpu, cuda or cuda:N, instead of the configuration\'s' -r
complete -c knet-train -l precision -d 'How a GPU stores feature maps, instead of the configuration\'s: f32, bf16 or f16' -r
complete -c knet-train -l set -d 'Change a field of the configuration, e.g. `--set optimizer.lr=1e-3`' -r
complete -c knet-train -l gpu -d 'A GPU to plan for, which need not be here: h100, h200, a100, a10, l4, l40s, rtx4090, orin' -r
complete -c knet-train -l resume -d 'Go on from last.state in the folder of the run; begin if there is none'
complete -c knet-train -l plan -d 'Print what a step takes, in memory and operations, instead of training; with --gpu, on that GPU'
complete -c knet-train -s q -l quiet -d 'Say nothing but errors and how the run ended; log.jsonl has the numbers'
complete -c knet-train -s v -l verbose -d 'A line for every update instead of a bar'
complete -c knet-train -s h -l help -d 'Print help (see more with \'--help\')'
complete -c knet-train -s V -l version -d 'Print version'
