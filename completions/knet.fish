# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_knet_global_optspecs
    string join \n q/quiet v/verbose h/help V/version
end

function __fish_knet_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_knet_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_knet_using_subcommand
    set -l cmd (__fish_knet_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c knet -n "__fish_knet_needs_command" -s q -l quiet -d 'Say nothing but results, warnings and errors: no notes, no bar, no line a photo'
complete -c knet -n "__fish_knet_needs_command" -s v -l verbose -d 'Say more: model and device, and what the parts of a photo\'s time were'
complete -c knet -n "__fish_knet_needs_command" -s h -l help -d 'Print help'
complete -c knet -n "__fish_knet_needs_command" -s V -l version -d 'Print version'
complete -c knet -n "__fish_knet_needs_command" -f -a "segment" -d 'Find objects (and regions) in photos'
complete -c knet -n "__fish_knet_needs_command" -f -a "eval" -d 'Measure how good a model is on annotated photos'
complete -c knet -n "__fish_knet_needs_command" -f -a "inspect" -d 'Show what a checkpoint holds and what running it costs'
complete -c knet -n "__fish_knet_needs_command" -f -a "models" -d 'List the models by name, with what each costs'
complete -c knet -n "__fish_knet_needs_command" -f -a "bench" -d 'Time a model on this machine: percentiles of every part, and a table of steps'
complete -c knet -n "__fish_knet_needs_command" -f -a "tune" -d 'Choose a GPU\'s kernels by measuring, and keep the table that later runs follow'
complete -c knet -n "__fish_knet_needs_command" -f -a "cache" -d 'Show, fill or clear the cache of compiled CUDA kernels'
complete -c knet -n "__fish_knet_needs_command" -f -a "doctor" -d 'Look at all that a run needs, and say what would stop it and what to do'
complete -c knet -n "__fish_knet_needs_command" -f -a "dump" -d 'Write every intermediate tensor of one image, by PyTorch\'s names and layouts'
complete -c knet -n "__fish_knet_needs_command" -f -a "convert" -d 'Convert a PyTorch `.pth` checkpoint to a self-describing `.safetensors` file'
complete -c knet -n "__fish_knet_needs_command" -f -a "compile" -d 'Make one file of a model for these sizes and devices, which opens without packing and without compiling'
complete -c knet -n "__fish_knet_needs_command" -f -a "quantize" -d 'Make a checkpoint whose convolutions are 8-bit integers, with the ranges of maps found on photos'
complete -c knet -n "__fish_knet_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c knet -n "__fish_knet_using_subcommand segment" -l weights -d 'Checkpoint (.safetensors made by `knet convert` or `knet-train`), bundle (.knet made by `knet compile`), or `seeded:N` for reproducible random weights [default: the person model that comes with the program; seeded:0 for a model named by --model]' -r
complete -c knet -n "__fish_knet_using_subcommand segment" -l model -d 'Model name, e.g. knet_s3_r50_fpn_panoptic [default: what the checkpoint says; knet_s3_r50_fpn for seeded weights]' -r
complete -c knet -n "__fish_knet_using_subcommand segment" -l threads -d 'Worker threads [default: one per core]' -r
complete -c knet -n "__fish_knet_using_subcommand segment" -l device -d 'Where to compute: auto (a GPU if there is one), cpu, cuda or cuda:N [default: auto]' -r
complete -c knet -n "__fish_knet_using_subcommand segment" -l precision -d 'How feature maps are stored and multiplied [default: f16 on a GPU, bf16 of training steps; on a CPU int8 for weights of `knet quantize`, bf16 if it has AMX, else f32]' -r -f -a "f32\t'f32 throughout, for parity with reference data'
tf32x3\t'f32, with convolutions on tensor cores by three TF32 products each; f32 on a CPU'
f16\t'f16 on tensor cores; f32 on a CPU'
bf16\t'bf16 on tensor cores, or by AVX-512 BF16 or AMX of a CPU'
int8\t'the integers of weights that `knet quantize` made, by AVX-VNNI, AVX-512 VNNI or AMX of a CPU; the rest as without a word'"
complete -c knet -n "__fish_knet_using_subcommand segment" -l stages -d 'Run so many stages of the network instead of all: every stage gives finished masks, the next one better ones' -r
complete -c knet -n "__fish_knet_using_subcommand segment" -l deadline -d 'Run as many stages as there is time for, so that masks are there so many milliseconds after decoding' -r
complete -c knet -n "__fish_knet_using_subcommand segment" -l task -d 'Kind of result' -r -f -a "auto\t'What the model was made for'
instance\t'Objects with their own masks, which may overlap'
panoptic\t'Every pixel to one object or region'
semantic\t'Every pixel to one class'"
complete -c knet -n "__fish_knet_using_subcommand segment" -l size -d 'Size that photos are resized to fit into, whichever way they lie [default: the model\'s own, 800x1333 for COCO]' -r
complete -c knet -n "__fish_knet_using_subcommand segment" -l score -d 'Leave out instances, and things of a panoptic map, that score lower' -r
complete -c knet -n "__fish_knet_using_subcommand segment" -l min-area -d 'Leave out instances of fewer pixels [default: 1]' -r
complete -c knet -n "__fish_knet_using_subcommand segment" -l max-overlap -d 'Leave out an instance, whatever its class, whose mask and that of a better one have a larger IoU (0.9: duplicates) [default: none is left out]' -r
complete -c knet -n "__fish_knet_using_subcommand segment" -l out -d 'Folder to write to; made if it is not there' -r -F
complete -c knet -n "__fish_knet_using_subcommand segment" -l format -d 'What to write: `png` is the panoptic or semantic map, or for instances NAME.instances.png (16-bit grey: 0 nothing, n the n-th entry of `annotations` in NAME.json, the better one on top); `colour` is the same for the eye [default: overlay,json, and png,colour for panoptic, png for semantic results]' -r -f -a "overlay\t''
json\t''
png\t''
colour\t''"
complete -c knet -n "__fish_knet_using_subcommand segment" -l coco -d 'Write the instances of all photos to this file as one list that COCO\'s tools take, with the image and category ids of --annotations' -r -F
complete -c knet -n "__fish_knet_using_subcommand segment" -l annotations -d 'COCO file whose `images` and `categories` give the ids for --coco: photos by file name, classes by name' -r -F
complete -c knet -n "__fish_knet_using_subcommand segment" -l shard -d 'Do the I-th of N parts of the photos alone, I from 1: for N processes, on one machine or many' -r
complete -c knet -n "__fish_knet_using_subcommand segment" -l manifest -d 'Write to this file what became of each photo as it is done: a line of JSON with `status` (done, skipped, failed), the number of objects and the milliseconds of each part, or the error' -r -F
complete -c knet -n "__fish_knet_using_subcommand segment" -l recursive -d 'Take the photos below folders too; results lie in the same folders below --out'
complete -c knet -n "__fish_knet_using_subcommand segment" -l precise -d 'Round as little as PyTorch does, for results that agree with it to the last mask: direct convolution or F(2x2) on the CPU (about a fifth slower), f32 on a GPU'
complete -c knet -n "__fish_knet_using_subcommand segment" -l largest-part -d 'Keep of each instance only the largest connected part of its mask'
complete -c knet -n "__fish_knet_using_subcommand segment" -l no-labels -d 'Draw no labels on overlays'
complete -c knet -n "__fish_knet_using_subcommand segment" -l skip-existing -d 'Pass over photos whose results are there already, whatever options they were made with'
complete -c knet -n "__fish_knet_using_subcommand segment" -l overwrite -d 'Replace files that this command did not make (photos never)'
complete -c knet -n "__fish_knet_using_subcommand segment" -s q -l quiet -d 'Say nothing but results, warnings and errors: no notes, no bar, no line a photo'
complete -c knet -n "__fish_knet_using_subcommand segment" -s v -l verbose -d 'Say more: model and device, and what the parts of a photo\'s time were'
complete -c knet -n "__fish_knet_using_subcommand segment" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c knet -n "__fish_knet_using_subcommand eval" -l weights -d 'Checkpoint (.safetensors made by `knet convert` or `knet-train`), bundle (.knet made by `knet compile`), or `seeded:N` for reproducible random weights [default: the person model that comes with the program; seeded:0 for a model named by --model]' -r
complete -c knet -n "__fish_knet_using_subcommand eval" -l model -d 'Model name, e.g. knet_s3_r50_fpn_panoptic [default: what the checkpoint says; knet_s3_r50_fpn for seeded weights]' -r
complete -c knet -n "__fish_knet_using_subcommand eval" -l threads -d 'Worker threads [default: one per core]' -r
complete -c knet -n "__fish_knet_using_subcommand eval" -l device -d 'Where to compute: auto (a GPU if there is one), cpu, cuda or cuda:N [default: auto]' -r
complete -c knet -n "__fish_knet_using_subcommand eval" -l precision -d 'How feature maps are stored and multiplied [default: f16 on a GPU, bf16 of training steps; on a CPU int8 for weights of `knet quantize`, bf16 if it has AMX, else f32]' -r -f -a "f32\t'f32 throughout, for parity with reference data'
tf32x3\t'f32, with convolutions on tensor cores by three TF32 products each; f32 on a CPU'
f16\t'f16 on tensor cores; f32 on a CPU'
bf16\t'bf16 on tensor cores, or by AVX-512 BF16 or AMX of a CPU'
int8\t'the integers of weights that `knet quantize` made, by AVX-VNNI, AVX-512 VNNI or AMX of a CPU; the rest as without a word'"
complete -c knet -n "__fish_knet_using_subcommand eval" -l stages -d 'Run so many stages of the network instead of all: every stage gives finished masks, the next one better ones' -r
complete -c knet -n "__fish_knet_using_subcommand eval" -l deadline -d 'Run as many stages as there is time for, so that masks are there so many milliseconds after decoding' -r
complete -c knet -n "__fish_knet_using_subcommand eval" -l images -d 'Folder of the photos' -r -F
complete -c knet -n "__fish_knet_using_subcommand eval" -l annotations -d 'COCO instance annotations, or panoptic ones with --panoptic-dir' -r -F
complete -c knet -n "__fish_knet_using_subcommand eval" -l panoptic-dir -d 'Folder of the PNGs of panoptic annotations' -r -F
complete -c knet -n "__fish_knet_using_subcommand eval" -l masks -d 'Folder of PNGs of class indices, named like the photos' -r -F
complete -c knet -n "__fish_knet_using_subcommand eval" -l classes -d 'Class list of the masks: {"ignore_index": 255, "classes": [{"index": 0, "name": "sky"}, ...]}' -r -F
complete -c knet -n "__fish_knet_using_subcommand eval" -l classes-field -d 'Field of the class list that holds the classes' -r
complete -c knet -n "__fish_knet_using_subcommand eval" -l list -d 'Text file with the stems of the masks to use, one a line [default: all masks of the folder]' -r -F
complete -c knet -n "__fish_knet_using_subcommand eval" -l size -d 'Size that photos are resized to fit into, whichever way they lie [default: the model\'s own, 800x1333 for COCO]' -r
complete -c knet -n "__fish_knet_using_subcommand eval" -l score -l min-score -d 'Leave out instances, and things of a panoptic map, that score lower [default: 0 for instances, the model\'s own threshold, 0.3 for COCO, for things of a panoptic map]' -r
complete -c knet -n "__fish_knet_using_subcommand eval" -l json -d 'Write all numbers to this file, with all digits' -r -F
complete -c knet -n "__fish_knet_using_subcommand eval" -l coco -d 'Write the instances to this file as one list that COCO\'s tools take, with the image and category ids of the annotations' -r -F
complete -c knet -n "__fish_knet_using_subcommand eval" -l precise -d 'Round as little as PyTorch does, for results that agree with it to the last mask: direct convolution or F(2x2) on the CPU (about a fifth slower), f32 on a GPU'
complete -c knet -n "__fish_knet_using_subcommand eval" -l common-classes -d 'Evaluate the classes that model and data set share, and leave out the others; all photos stay in'
complete -c knet -n "__fish_knet_using_subcommand eval" -l skip-damaged -d 'Leave out photos that cannot be decoded, and count them, instead of ending with an error'
complete -c knet -n "__fish_knet_using_subcommand eval" -l strict -d 'Refuse polygons of one or two points instead of dropping and counting them'
complete -c knet -n "__fish_knet_using_subcommand eval" -l overwrite -d 'Replace files that this command did not make (an input never)'
complete -c knet -n "__fish_knet_using_subcommand eval" -s q -l quiet -d 'Say nothing but results, warnings and errors: no notes, no bar, no line a photo'
complete -c knet -n "__fish_knet_using_subcommand eval" -s v -l verbose -d 'Say more: model and device, and what the parts of a photo\'s time were'
complete -c knet -n "__fish_knet_using_subcommand eval" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c knet -n "__fish_knet_using_subcommand inspect" -l model -d 'Model name, for files that do not say' -r
complete -c knet -n "__fish_knet_using_subcommand inspect" -l size -d 'Size of the resized photo, which the network sees rounded up to multiples of 32 [default: the model\'s own, 800x1333 for COCO]' -r
complete -c knet -n "__fish_knet_using_subcommand inspect" -l threads -d 'Worker threads the plan is made for [default: one per core]' -r
complete -c knet -n "__fish_knet_using_subcommand inspect" -l gpu -d 'Plan for this GPU: h100, h200, a100, a10, l4, l40s, rtx4090 or orin' -r
complete -c knet -n "__fish_knet_using_subcommand inspect" -l precision -d 'How the GPU stores and multiplies feature maps' -r -f -a "f32\t'f32 throughout, for parity with reference data'
tf32x3\t'f32, with convolutions on tensor cores by three TF32 products each; f32 on a CPU'
f16\t'f16 on tensor cores; f32 on a CPU'
bf16\t'bf16 on tensor cores, or by AVX-512 BF16 or AMX of a CPU'
int8\t'the integers of weights that `knet quantize` made, by AVX-VNNI, AVX-512 VNNI or AMX of a CPU; the rest as without a word'"
complete -c knet -n "__fish_knet_using_subcommand inspect" -l batch -d 'Images of a training step' -r
complete -c knet -n "__fish_knet_using_subcommand inspect" -l train -d 'Plan a training step: forward, matching, losses, backward, clipping and AdamW. The table has a line an operator, the JSON every step'
complete -c knet -n "__fish_knet_using_subcommand inspect" -l json -d 'Print JSON'
complete -c knet -n "__fish_knet_using_subcommand inspect" -s q -l quiet -d 'Say nothing but results, warnings and errors: no notes, no bar, no line a photo'
complete -c knet -n "__fish_knet_using_subcommand inspect" -s v -l verbose -d 'Say more: model and device, and what the parts of a photo\'s time were'
complete -c knet -n "__fish_knet_using_subcommand inspect" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c knet -n "__fish_knet_using_subcommand models" -l gpu -d 'Plan for this GPU: h100, h200, a100, a10, l4, l40s, rtx4090 or orin' -r
complete -c knet -n "__fish_knet_using_subcommand models" -l precision -d 'How the GPU stores and multiplies feature maps' -r -f -a "f32\t'f32 throughout, for parity with reference data'
tf32x3\t'f32, with convolutions on tensor cores by three TF32 products each; f32 on a CPU'
f16\t'f16 on tensor cores; f32 on a CPU'
bf16\t'bf16 on tensor cores, or by AVX-512 BF16 or AMX of a CPU'
int8\t'the integers of weights that `knet quantize` made, by AVX-VNNI, AVX-512 VNNI or AMX of a CPU; the rest as without a word'"
complete -c knet -n "__fish_knet_using_subcommand models" -l json -d 'Print JSON'
complete -c knet -n "__fish_knet_using_subcommand models" -s q -l quiet -d 'Say nothing but results, warnings and errors: no notes, no bar, no line a photo'
complete -c knet -n "__fish_knet_using_subcommand models" -s v -l verbose -d 'Say more: model and device, and what the parts of a photo\'s time were'
complete -c knet -n "__fish_knet_using_subcommand models" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c knet -n "__fish_knet_using_subcommand bench" -l weights -d 'Checkpoint (.safetensors made by `knet convert` or `knet-train`), bundle (.knet made by `knet compile`), or `seeded:N` for reproducible random weights [default: the person model that comes with the program; seeded:0 for a model named by --model]' -r
complete -c knet -n "__fish_knet_using_subcommand bench" -l model -d 'Model name, e.g. knet_s3_r50_fpn_panoptic [default: what the checkpoint says; knet_s3_r50_fpn for seeded weights]' -r
complete -c knet -n "__fish_knet_using_subcommand bench" -l threads -d 'Worker threads [default: one per core]' -r
complete -c knet -n "__fish_knet_using_subcommand bench" -l device -d 'Where to compute: auto (a GPU if there is one), cpu, cuda or cuda:N [default: auto]' -r
complete -c knet -n "__fish_knet_using_subcommand bench" -l precision -d 'How feature maps are stored and multiplied [default: f16 on a GPU, bf16 of training steps; on a CPU int8 for weights of `knet quantize`, bf16 if it has AMX, else f32]' -r -f -a "f32\t'f32 throughout, for parity with reference data'
tf32x3\t'f32, with convolutions on tensor cores by three TF32 products each; f32 on a CPU'
f16\t'f16 on tensor cores; f32 on a CPU'
bf16\t'bf16 on tensor cores, or by AVX-512 BF16 or AMX of a CPU'
int8\t'the integers of weights that `knet quantize` made, by AVX-VNNI, AVX-512 VNNI or AMX of a CPU; the rest as without a word'"
complete -c knet -n "__fish_knet_using_subcommand bench" -l size -d 'Size of the image, that of a photo after its resize [default: the model\'s own, 800x1333 for COCO]' -r
complete -c knet -n "__fish_knet_using_subcommand bench" -l batch -d 'Images of a training step' -r
complete -c knet -n "__fish_knet_using_subcommand bench" -l objects -d 'Objects of an image of a training step' -r
complete -c knet -n "__fish_knet_using_subcommand bench" -l runs -d 'Timed runs, after one that is not' -r
complete -c knet -n "__fish_knet_using_subcommand bench" -l stages -d 'Run so many stages of the network instead of all: every stage gives finished masks, the next one better ones' -r
complete -c knet -n "__fish_knet_using_subcommand bench" -l deadline -d 'Run as many stages as there is time for, so that masks are there so many milliseconds after decoding' -r
complete -c knet -n "__fish_knet_using_subcommand bench" -l queries -d 'Frames of the single stream [default: 6636, or as many as --seconds takes]' -r
complete -c knet -n "__fish_knet_using_subcommand bench" -l seconds -d 'Time that the single stream takes' -r
complete -c knet -n "__fish_knet_using_subcommand bench" -l image -d 'Photo of the single stream, resized as `knet segment` does [default: a synthetic picture of --size]' -r -F
complete -c knet -n "__fish_knet_using_subcommand bench" -l histogram -d 'Draw the latencies of the single stream to this file' -r -F
complete -c knet -n "__fish_knet_using_subcommand bench" -l precise -d 'Round as little as PyTorch does, for results that agree with it to the last mask: direct convolution or F(2x2) on the CPU (about a fifth slower), f32 on a GPU'
complete -c knet -n "__fish_knet_using_subcommand bench" -l train -d 'Time a training step instead: forward, matching, losses, backward, clipping and AdamW'
complete -c knet -n "__fish_knet_using_subcommand bench" -l single-stream -d 'Time one frame after the other instead, as MLPerf\'s single stream: from an image in host memory to masks in the caller\'s, after 20 frames that do not count'
complete -c knet -n "__fish_knet_using_subcommand bench" -l check-allocations -d 'Count what the program allocates during the single stream, and fail (exit code 1) if it is anything'
complete -c knet -n "__fish_knet_using_subcommand bench" -l no-steps -d 'Leave out the table of steps'
complete -c knet -n "__fish_knet_using_subcommand bench" -l json -d 'Print JSON'
complete -c knet -n "__fish_knet_using_subcommand bench" -s q -l quiet -d 'Say nothing but results, warnings and errors: no notes, no bar, no line a photo'
complete -c knet -n "__fish_knet_using_subcommand bench" -s v -l verbose -d 'Say more: model and device, and what the parts of a photo\'s time were'
complete -c knet -n "__fish_knet_using_subcommand bench" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c knet -n "__fish_knet_using_subcommand tune" -l weights -d 'Checkpoint (.safetensors made by `knet convert` or `knet-train`), bundle (.knet made by `knet compile`), or `seeded:N` for reproducible random weights [default: the person model that comes with the program; seeded:0 for a model named by --model]' -r
complete -c knet -n "__fish_knet_using_subcommand tune" -l model -d 'Model name, e.g. knet_s3_r50_fpn_panoptic [default: what the checkpoint says; knet_s3_r50_fpn for seeded weights]' -r
complete -c knet -n "__fish_knet_using_subcommand tune" -l threads -d 'Worker threads [default: one per core]' -r
complete -c knet -n "__fish_knet_using_subcommand tune" -l device -d 'Where to compute: auto (a GPU if there is one), cpu, cuda or cuda:N [default: auto]' -r
complete -c knet -n "__fish_knet_using_subcommand tune" -l precision -d 'How feature maps are stored and multiplied [default: f16 on a GPU, bf16 of training steps; on a CPU int8 for weights of `knet quantize`, bf16 if it has AMX, else f32]' -r -f -a "f32\t'f32 throughout, for parity with reference data'
tf32x3\t'f32, with convolutions on tensor cores by three TF32 products each; f32 on a CPU'
f16\t'f16 on tensor cores; f32 on a CPU'
bf16\t'bf16 on tensor cores, or by AVX-512 BF16 or AMX of a CPU'
int8\t'the integers of weights that `knet quantize` made, by AVX-VNNI, AVX-512 VNNI or AMX of a CPU; the rest as without a word'"
complete -c knet -n "__fish_knet_using_subcommand tune" -l size -d 'Size of the resized photo [default: the model\'s own]' -r
complete -c knet -n "__fish_knet_using_subcommand tune" -l candidates -d 'Kernels to time for a step, the best by the cost model' -r
complete -c knet -n "__fish_knet_using_subcommand tune" -l out -d 'Table to write [default: the file that KNET_TUNED names, else one beside the kernel cache]' -r -F
complete -c knet -n "__fish_knet_using_subcommand tune" -l precise -d 'Round as little as PyTorch does, for results that agree with it to the last mask: direct convolution or F(2x2) on the CPU (about a fifth slower), f32 on a GPU'
complete -c knet -n "__fish_knet_using_subcommand tune" -l json -d 'Print JSON'
complete -c knet -n "__fish_knet_using_subcommand tune" -s q -l quiet -d 'Say nothing but results, warnings and errors: no notes, no bar, no line a photo'
complete -c knet -n "__fish_knet_using_subcommand tune" -s v -l verbose -d 'Say more: model and device, and what the parts of a photo\'s time were'
complete -c knet -n "__fish_knet_using_subcommand tune" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c knet -n "__fish_knet_using_subcommand cache; and not __fish_seen_subcommand_from fill clear help" -l json -d 'Print JSON'
complete -c knet -n "__fish_knet_using_subcommand cache; and not __fish_seen_subcommand_from fill clear help" -s q -l quiet -d 'Say nothing but results, warnings and errors: no notes, no bar, no line a photo'
complete -c knet -n "__fish_knet_using_subcommand cache; and not __fish_seen_subcommand_from fill clear help" -s v -l verbose -d 'Say more: model and device, and what the parts of a photo\'s time were'
complete -c knet -n "__fish_knet_using_subcommand cache; and not __fish_seen_subcommand_from fill clear help" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c knet -n "__fish_knet_using_subcommand cache; and not __fish_seen_subcommand_from fill clear help" -f -a "fill" -d 'Compile all that a model runs on a GPU, which need not be here'
complete -c knet -n "__fish_knet_using_subcommand cache; and not __fish_seen_subcommand_from fill clear help" -f -a "clear" -d 'Remove all compiled kernels, and nothing else: tables of `knet tune` stay'
complete -c knet -n "__fish_knet_using_subcommand cache; and not __fish_seen_subcommand_from fill clear help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c knet -n "__fish_knet_using_subcommand cache; and __fish_seen_subcommand_from fill" -l weights -d 'Checkpoint (.safetensors made by `knet convert` or `knet-train`), bundle (.knet made by `knet compile`), or `seeded:N` for reproducible random weights [default: the person model that comes with the program; seeded:0 for a model named by --model]' -r
complete -c knet -n "__fish_knet_using_subcommand cache; and __fish_seen_subcommand_from fill" -l model -d 'Model name, e.g. knet_s3_r50_fpn_panoptic [default: what the checkpoint says; knet_s3_r50_fpn for seeded weights]' -r
complete -c knet -n "__fish_knet_using_subcommand cache; and __fish_seen_subcommand_from fill" -l threads -d 'Worker threads [default: one per core]' -r
complete -c knet -n "__fish_knet_using_subcommand cache; and __fish_seen_subcommand_from fill" -l device -d 'Where to compute: auto (a GPU if there is one), cpu, cuda or cuda:N [default: auto]' -r
complete -c knet -n "__fish_knet_using_subcommand cache; and __fish_seen_subcommand_from fill" -l precision -d 'How feature maps are stored and multiplied [default: f16 on a GPU, bf16 of training steps; on a CPU int8 for weights of `knet quantize`, bf16 if it has AMX, else f32]' -r -f -a "f32\t'f32 throughout, for parity with reference data'
tf32x3\t'f32, with convolutions on tensor cores by three TF32 products each; f32 on a CPU'
f16\t'f16 on tensor cores; f32 on a CPU'
bf16\t'bf16 on tensor cores, or by AVX-512 BF16 or AMX of a CPU'
int8\t'the integers of weights that `knet quantize` made, by AVX-VNNI, AVX-512 VNNI or AMX of a CPU; the rest as without a word'"
complete -c knet -n "__fish_knet_using_subcommand cache; and __fish_seen_subcommand_from fill" -l gpu -d 'Compile for this GPU: h100, h200, a100, a10, l4, l40s, rtx4090 or orin, at the clocks that drivers report [default: the GPU of this machine that --device names]' -r
complete -c knet -n "__fish_knet_using_subcommand cache; and __fish_seen_subcommand_from fill" -l size -d 'Size of the resized photo, which the network sees rounded up to multiples of 32. May be given several times [default: the model\'s own, lying and standing]' -r
complete -c knet -n "__fish_knet_using_subcommand cache; and __fish_seen_subcommand_from fill" -l precise -d 'Round as little as PyTorch does, for results that agree with it to the last mask: direct convolution or F(2x2) on the CPU (about a fifth slower), f32 on a GPU'
complete -c knet -n "__fish_knet_using_subcommand cache; and __fish_seen_subcommand_from fill" -l json -d 'Print JSON'
complete -c knet -n "__fish_knet_using_subcommand cache; and __fish_seen_subcommand_from fill" -s q -l quiet -d 'Say nothing but results, warnings and errors: no notes, no bar, no line a photo'
complete -c knet -n "__fish_knet_using_subcommand cache; and __fish_seen_subcommand_from fill" -s v -l verbose -d 'Say more: model and device, and what the parts of a photo\'s time were'
complete -c knet -n "__fish_knet_using_subcommand cache; and __fish_seen_subcommand_from fill" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c knet -n "__fish_knet_using_subcommand cache; and __fish_seen_subcommand_from clear" -l json -d 'Print JSON'
complete -c knet -n "__fish_knet_using_subcommand cache; and __fish_seen_subcommand_from clear" -s q -l quiet -d 'Say nothing but results, warnings and errors: no notes, no bar, no line a photo'
complete -c knet -n "__fish_knet_using_subcommand cache; and __fish_seen_subcommand_from clear" -s v -l verbose -d 'Say more: model and device, and what the parts of a photo\'s time were'
complete -c knet -n "__fish_knet_using_subcommand cache; and __fish_seen_subcommand_from clear" -s h -l help -d 'Print help'
complete -c knet -n "__fish_knet_using_subcommand cache; and __fish_seen_subcommand_from help" -f -a "fill" -d 'Compile all that a model runs on a GPU, which need not be here'
complete -c knet -n "__fish_knet_using_subcommand cache; and __fish_seen_subcommand_from help" -f -a "clear" -d 'Remove all compiled kernels, and nothing else: tables of `knet tune` stay'
complete -c knet -n "__fish_knet_using_subcommand cache; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c knet -n "__fish_knet_using_subcommand doctor" -l device -d 'What to look at: auto (a GPU if there is one, and the CPU), cpu, cuda or cuda:N' -r
complete -c knet -n "__fish_knet_using_subcommand doctor" -l json -d 'Print JSON'
complete -c knet -n "__fish_knet_using_subcommand doctor" -s q -l quiet -d 'Say nothing but results, warnings and errors: no notes, no bar, no line a photo'
complete -c knet -n "__fish_knet_using_subcommand doctor" -s v -l verbose -d 'Say more: model and device, and what the parts of a photo\'s time were'
complete -c knet -n "__fish_knet_using_subcommand doctor" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c knet -n "__fish_knet_using_subcommand dump" -l weights -d 'Checkpoint (.safetensors made by `knet convert` or `knet-train`), bundle (.knet made by `knet compile`), or `seeded:N` for reproducible random weights [default: the person model that comes with the program; seeded:0 for a model named by --model]' -r
complete -c knet -n "__fish_knet_using_subcommand dump" -l model -d 'Model name, e.g. knet_s3_r50_fpn_panoptic [default: what the checkpoint says; knet_s3_r50_fpn for seeded weights]' -r
complete -c knet -n "__fish_knet_using_subcommand dump" -l threads -d 'Worker threads [default: one per core]' -r
complete -c knet -n "__fish_knet_using_subcommand dump" -l device -d 'Where to compute: auto (a GPU if there is one), cpu, cuda or cuda:N [default: auto]' -r
complete -c knet -n "__fish_knet_using_subcommand dump" -l precision -d 'How feature maps are stored and multiplied [default: f16 on a GPU, bf16 of training steps; on a CPU int8 for weights of `knet quantize`, bf16 if it has AMX, else f32]' -r -f -a "f32\t'f32 throughout, for parity with reference data'
tf32x3\t'f32, with convolutions on tensor cores by three TF32 products each; f32 on a CPU'
f16\t'f16 on tensor cores; f32 on a CPU'
bf16\t'bf16 on tensor cores, or by AVX-512 BF16 or AMX of a CPU'
int8\t'the integers of weights that `knet quantize` made, by AVX-VNNI, AVX-512 VNNI or AMX of a CPU; the rest as without a word'"
complete -c knet -n "__fish_knet_using_subcommand dump" -l image -d 'The image' -r -F
complete -c knet -n "__fish_knet_using_subcommand dump" -l ori-size -d 'Size of the original photo, to which masks are brought [default: the image\'s own]' -r
complete -c knet -n "__fish_knet_using_subcommand dump" -l out -d 'File to write' -r -F
complete -c knet -n "__fish_knet_using_subcommand dump" -l precise -d 'Round as little as PyTorch does, for results that agree with it to the last mask: direct convolution or F(2x2) on the CPU (about a fifth slower), f32 on a GPU'
complete -c knet -n "__fish_knet_using_subcommand dump" -l no-resize -d 'Take the image as already resized: only normalise and pad it'
complete -c knet -n "__fish_knet_using_subcommand dump" -l overwrite -d 'Replace a file that this command did not make (an input never)'
complete -c knet -n "__fish_knet_using_subcommand dump" -s q -l quiet -d 'Say nothing but results, warnings and errors: no notes, no bar, no line a photo'
complete -c knet -n "__fish_knet_using_subcommand dump" -s v -l verbose -d 'Say more: model and device, and what the parts of a photo\'s time were'
complete -c knet -n "__fish_knet_using_subcommand dump" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c knet -n "__fish_knet_using_subcommand convert" -l out -d 'File to write [default: the input with the ending .safetensors]' -r -F
complete -c knet -n "__fish_knet_using_subcommand convert" -l model -d 'Take the file to hold this K-Net instead of recognising what it holds' -r
complete -c knet -n "__fish_knet_using_subcommand convert" -l set -d 'A field of the model\'s configuration, in JSON, that wins over what the file says: `--set stuff_classes=2`, `--set heads=4`, `--set size=[800,1333]`; `knet inspect` shows them all' -r
complete -c knet -n "__fish_knet_using_subcommand convert" -l classes -d 'Names of the classes in the order of the model\'s: a text file with one a line, or a COCO JSON file, whose ids results then carry (its categories by ascending id, things first); or ade20k, cityscapes or coco-stuff' -r -F
complete -c knet -n "__fish_knet_using_subcommand convert" -l precision -d 'Element type of the stored weights' -r -f -a "f32\t''
f16\t''"
complete -c knet -n "__fish_knet_using_subcommand convert" -l ema -d 'Take the averaged weights that mmcv\'s EMAHook keeps beside the weights (`ema_*`)'
complete -c knet -n "__fish_knet_using_subcommand convert" -l bgr -d 'The network was trained on B, G, R: reverse the channels of its first convolution, mean and std'
complete -c knet -n "__fish_knet_using_subcommand convert" -l overwrite -d 'Replace a file that this command did not make (the input never)'
complete -c knet -n "__fish_knet_using_subcommand convert" -s q -l quiet -d 'Say nothing but results, warnings and errors: no notes, no bar, no line a photo'
complete -c knet -n "__fish_knet_using_subcommand convert" -s v -l verbose -d 'Say more: model and device, and what the parts of a photo\'s time were'
complete -c knet -n "__fish_knet_using_subcommand convert" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c knet -n "__fish_knet_using_subcommand compile" -l weights -d 'Checkpoint, or `seeded:N` [default: the person model that comes with the program; seeded:0 for a model named by --model]' -r
complete -c knet -n "__fish_knet_using_subcommand compile" -l model -d 'Model name, for weights that do not say it' -r
complete -c knet -n "__fish_knet_using_subcommand compile" -l size -d 'Size of the resized photo, which the network sees rounded up to multiples of 32: one or several, `384x512,512x384`, or SHORT,LONG for a lying one. May be given several times [default: the model\'s own, lying and standing]' -r
complete -c knet -n "__fish_knet_using_subcommand compile" -l target -d 'Devices: cpu (this one\'s instruction set), a compute capability such as sm_87, a GPU (h100, h200, a100, a10, l4, l40s, rtx4090 or orin), or cuda or cuda:N for the one that is here' -r
complete -c knet -n "__fish_knet_using_subcommand compile" -l precision -d 'How feature maps are stored and multiplied [default: f16 on a GPU; on a CPU bf16 if this one has AMX, else f32]' -r -f -a "f32\t'f32 throughout, for parity with reference data'
tf32x3\t'f32, with convolutions on tensor cores by three TF32 products each; f32 on a CPU'
f16\t'f16 on tensor cores; f32 on a CPU'
bf16\t'bf16 on tensor cores, or by AVX-512 BF16 or AMX of a CPU'
int8\t'the integers of weights that `knet quantize` made, by AVX-VNNI, AVX-512 VNNI or AMX of a CPU; the rest as without a word'"
complete -c knet -n "__fish_knet_using_subcommand compile" -l out -d 'File to write [default: the weights\' name with the ending .knet, here]' -r -F
complete -c knet -n "__fish_knet_using_subcommand compile" -l precise -d 'Round as little as PyTorch does, as --precise of other commands: exact kernels on the CPU, f32 on a GPU'
complete -c knet -n "__fish_knet_using_subcommand compile" -l overwrite -d 'Replace a file that this command did not make (the weights never)'
complete -c knet -n "__fish_knet_using_subcommand compile" -s q -l quiet -d 'Say nothing but results, warnings and errors: no notes, no bar, no line a photo'
complete -c knet -n "__fish_knet_using_subcommand compile" -s v -l verbose -d 'Say more: model and device, and what the parts of a photo\'s time were'
complete -c knet -n "__fish_knet_using_subcommand compile" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c knet -n "__fish_knet_using_subcommand quantize" -l weights -d 'Checkpoint, or `seeded:N` [default: the person model that comes with the program; seeded:0 for a model named by --model]' -r
complete -c knet -n "__fish_knet_using_subcommand quantize" -l model -d 'Model name, for weights that do not say it' -r
complete -c knet -n "__fish_knet_using_subcommand quantize" -l images -d 'Folder of photos (JPEG, PNG, ...) like those that the model is for' -r -F
complete -c knet -n "__fish_knet_using_subcommand quantize" -l photos -d 'Most photos to look at, spread evenly over the folder\'s names in their order' -r
complete -c knet -n "__fish_knet_using_subcommand quantize" -l out -d 'File to write [default: the weights\' name with the ending .int8.safetensors, here]' -r -F
complete -c knet -n "__fish_knet_using_subcommand quantize" -l percentile -d 'Let ranges reach so many percent of the values that are not 0, 99.99 say, instead of as far as makes the squared error least' -r
complete -c knet -n "__fish_knet_using_subcommand quantize" -l keep -d 'Leave layers as they are whose filters\' names begin so; --report names them all. May be given several times' -r
complete -c knet -n "__fish_knet_using_subcommand quantize" -l size -d 'Size that photos are resized to fit into [default: the model\'s own]' -r
complete -c knet -n "__fish_knet_using_subcommand quantize" -l annotations -d 'COCO instance annotations, to measure mask AP before and after' -r -F
complete -c knet -n "__fish_knet_using_subcommand quantize" -l annotated-images -d 'Folder of the annotated photos [default: --images]' -r -F
complete -c knet -n "__fish_knet_using_subcommand quantize" -l report -d 'Write the report to this file, with all digits' -r -F
complete -c knet -n "__fish_knet_using_subcommand quantize" -l threads -d 'Worker threads [default: one per core]' -r
complete -c knet -n "__fish_knet_using_subcommand quantize" -l overwrite -d 'Replace files that this command did not make (an input never)'
complete -c knet -n "__fish_knet_using_subcommand quantize" -s q -l quiet -d 'Say nothing but results, warnings and errors: no notes, no bar, no line a photo'
complete -c knet -n "__fish_knet_using_subcommand quantize" -s v -l verbose -d 'Say more: model and device, and what the parts of a photo\'s time were'
complete -c knet -n "__fish_knet_using_subcommand quantize" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c knet -n "__fish_knet_using_subcommand help; and not __fish_seen_subcommand_from segment eval inspect models bench tune cache doctor dump convert compile quantize help" -f -a "segment" -d 'Find objects (and regions) in photos'
complete -c knet -n "__fish_knet_using_subcommand help; and not __fish_seen_subcommand_from segment eval inspect models bench tune cache doctor dump convert compile quantize help" -f -a "eval" -d 'Measure how good a model is on annotated photos'
complete -c knet -n "__fish_knet_using_subcommand help; and not __fish_seen_subcommand_from segment eval inspect models bench tune cache doctor dump convert compile quantize help" -f -a "inspect" -d 'Show what a checkpoint holds and what running it costs'
complete -c knet -n "__fish_knet_using_subcommand help; and not __fish_seen_subcommand_from segment eval inspect models bench tune cache doctor dump convert compile quantize help" -f -a "models" -d 'List the models by name, with what each costs'
complete -c knet -n "__fish_knet_using_subcommand help; and not __fish_seen_subcommand_from segment eval inspect models bench tune cache doctor dump convert compile quantize help" -f -a "bench" -d 'Time a model on this machine: percentiles of every part, and a table of steps'
complete -c knet -n "__fish_knet_using_subcommand help; and not __fish_seen_subcommand_from segment eval inspect models bench tune cache doctor dump convert compile quantize help" -f -a "tune" -d 'Choose a GPU\'s kernels by measuring, and keep the table that later runs follow'
complete -c knet -n "__fish_knet_using_subcommand help; and not __fish_seen_subcommand_from segment eval inspect models bench tune cache doctor dump convert compile quantize help" -f -a "cache" -d 'Show, fill or clear the cache of compiled CUDA kernels'
complete -c knet -n "__fish_knet_using_subcommand help; and not __fish_seen_subcommand_from segment eval inspect models bench tune cache doctor dump convert compile quantize help" -f -a "doctor" -d 'Look at all that a run needs, and say what would stop it and what to do'
complete -c knet -n "__fish_knet_using_subcommand help; and not __fish_seen_subcommand_from segment eval inspect models bench tune cache doctor dump convert compile quantize help" -f -a "dump" -d 'Write every intermediate tensor of one image, by PyTorch\'s names and layouts'
complete -c knet -n "__fish_knet_using_subcommand help; and not __fish_seen_subcommand_from segment eval inspect models bench tune cache doctor dump convert compile quantize help" -f -a "convert" -d 'Convert a PyTorch `.pth` checkpoint to a self-describing `.safetensors` file'
complete -c knet -n "__fish_knet_using_subcommand help; and not __fish_seen_subcommand_from segment eval inspect models bench tune cache doctor dump convert compile quantize help" -f -a "compile" -d 'Make one file of a model for these sizes and devices, which opens without packing and without compiling'
complete -c knet -n "__fish_knet_using_subcommand help; and not __fish_seen_subcommand_from segment eval inspect models bench tune cache doctor dump convert compile quantize help" -f -a "quantize" -d 'Make a checkpoint whose convolutions are 8-bit integers, with the ranges of maps found on photos'
complete -c knet -n "__fish_knet_using_subcommand help; and not __fish_seen_subcommand_from segment eval inspect models bench tune cache doctor dump convert compile quantize help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c knet -n "__fish_knet_using_subcommand help; and __fish_seen_subcommand_from cache" -f -a "fill" -d 'Compile all that a model runs on a GPU, which need not be here'
complete -c knet -n "__fish_knet_using_subcommand help; and __fish_seen_subcommand_from cache" -f -a "clear" -d 'Remove all compiled kernels, and nothing else: tables of `knet tune` stay'
