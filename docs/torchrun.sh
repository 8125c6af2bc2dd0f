#!/bin/bash
# Train on several machines. On each of them, with the same words:
#   NUM_NODES=2 FIRST_NODE=node0:29500 docs/torchrun.sh experiment=kl_f8 data=image_folder data.root=/shared/PHOTOS
# PER_NODE processes a machine (default: one for each GPU); TRAINER=ddp_cpu trains without GPUs.
set -eu
: "${NUM_NODES:?how many machines}" "${FIRST_NODE:?HOST:PORT of the first machine}"
PER_NODE=${PER_NODE:-$(nvidia-smi --list-gpus | wc -l)}

exec python -m torch.distributed.run \
  --nnodes "$NUM_NODES" --nproc-per-node "$PER_NODE" \
  --rdzv-backend c10d --rdzv-endpoint "$FIRST_NODE" --rdzv-id "${RUN_ID:-ldm_train}" \
  -m ldm_lightning.train "$@" \
  trainer="${TRAINER:-ddp}" trainer.devices="$PER_NODE" trainer.num_nodes="$NUM_NODES"
