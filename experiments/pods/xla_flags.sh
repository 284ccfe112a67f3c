#!/usr/bin/env bash
# What the scripts here ask of XLA, so that what devices send is hidden behind what they compute.
# A variable that is set already comes after these, and so wins.
#
# GPU: on in NVIDIA's JAX containers (docs.nvidia.com/jax-toolbox/environment-variables) and among
# JAX's GPU performance tips (docs.jax.dev/en/latest/gpu_performance_tips.html).
# TPU: those of JAX's list of TPU flags (docs.jax.dev/en/latest/xla_flags.html) that overlap
# collectives with computing; MaxText trains with them.

# shellcheck disable=SC2034 # for those who read this file
GPU_FLAGS="--xla_gpu_enable_latency_hiding_scheduler=true"
# shellcheck disable=SC2034
TPU_FLAGS="--xla_tpu_enable_data_parallel_all_reduce_opt=true\
 --xla_tpu_data_parallel_opt_different_sized_ops=true\
 --xla_tpu_enable_async_collective_fusion=true\
 --xla_tpu_enable_async_collective_fusion_fuse_all_gather=true\
 --xla_tpu_enable_async_collective_fusion_multiple_steps=true\
 --xla_tpu_overlap_compute_collective_tc=true\
 --xla_enable_async_all_gather=true"
