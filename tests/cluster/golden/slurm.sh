#!/bin/bash
#SBATCH --job-name=maml-1
#SBATCH --partition=gpu
#SBATCH --account=vision
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=a100:2
#SBATCH --mem=64G
#SBATCH --time=1-12:00:00
#SBATCH --chdir=/shared/project
#SBATCH --signal=B:USR1@120
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --constraint=ib
#SBATCH --output=/shared/jobs/maml-1/slurm-%j.log
folder=/shared/jobs/maml-1
nodes=4
cpus=16
gpus=2
gpu_type=a100
interface=ib0
port=0
temp_dir=/tmp
start_s=300
requeues=100
drained=75
export RAY_AUTH_MODE=token
export RAY_AUTH_TOKEN_PATH=/shared/jobs/maml-1/token
export METASHARD_RUN=maml-1
export MLFLOW_TRACKING_URI=https://mlflow.lab
export NCCL_DEBUG=WARN
command=(metashard train 'a b.yaml' 'name=$HOME; x')
setup() {
{ module load cuda/12
} || return
{ PATH=/shared/env/bin:$PATH
} || return
:
}
# From here on the script is the same for every job.
job=$folder/slurm-$SLURM_JOB_ID
temp=$temp_dir/ms-$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}
child='' told='' interrupted='' steps=()
share=(--overlap --ntasks-per-node=1 "--cpus-per-task=$cpus")
[ "$gpus" = 0 ] || share+=("--gpus-per-node=${gpu_type:+$gpu_type:}$gpus")

say() { echo "metashard: $*" >&2; }

# Ends the job: first Ray on all nodes, then queues it again or leaves its exit code where the submitter looks for it.
leave() {
  trap : TERM USR1
  if [ ${#steps[@]} != 0 ]; then
    # To the steps only: this script would get it too, were it told so. What does not listen is ended after a while.
    scancel --signal=TERM "$SLURM_JOB_ID"
    for ((left = 100; left; left--)); do
      kill -0 "${steps[@]}" 2>/dev/null || break
      sleep 0.1
    done
    kill "${steps[@]}" 2>/dev/null
    wait "${steps[@]}" 2>/dev/null
    timeout 60 srun --overlap --ntasks-per-node=1 rm -rf "$temp" || say "$temp may be left on some nodes"
  fi
  if [ "$1" = "$drained" ] && [ ! -e "$job.stopped" ]; then
    if [ "${SLURM_RESTART_COUNT:-0}" -ge "$requeues" ]; then
      say "saved and left, and was queued again requeues = $requeues times; go on with: metashard resume $METASHARD_RUN"
    else
      say "saved and left; queued again, to go on from there"
      scontrol requeue "$SLURM_JOB_ID" && exit "$drained"
      say "Slurm does not queue this job again; go on with: metashard resume $METASHARD_RUN"
    fi
  fi
  echo "$1" >"$job.exit.partial" && mv "$job.exit.partial" "$job.exit"
  exit "$1"
}

fail() {
  [ -z "$told" ] || leave "$drained"
  say "$*"
  [ ! -s "$job.ray" ] || tail -n 20 "$job.ray" >&2
  leave 1
}

hand_on() {
  told=$1 interrupted=yes
  [ -z "$child" ] || kill -s "$1" "$child" 2>/dev/null
}

# Runs a command as a child that hears what this script is told, which a command in the foreground would not.
attend() {
  local seen
  "$@" &
  child=$!
  [ -z "$told" ] || kill -s "$told" "$child" 2>/dev/null
  code=127
  while :; do
    interrupted=''
    wait "$child"
    seen=$?
    # 127 if the child was waited for before the signal came: its code is known already.
    [ "$seen" = 127 ] || code=$seen
    [ -n "$interrupted" ] || break
  done
  child=''
}

address_of() {
  local name found
  if [ -n "$interface" ]; then
    ip -4 -oneline address show dev "$interface" | awk 'NR == 1 { sub("/.*", "", $4); print $4 }'
    return
  fi
  name=$(scontrol --oneliner show node "$1" | grep -o 'NodeAddr=[^ ]*')
  name=${name#NodeAddr=}
  found=$(getent ahostsv4 "$name" | awk 'NR == 1 { print $1 }')
  case "$name,$found" in
    127.*) echo "$found" ;;
    # Some systems give their own name a loopback address, where other nodes do not find them.
    *,127.*) hostname -I | awk '{ print $1 }' ;;
    *) echo "$found" ;;
  esac
}

free_port() { python -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'; }

trap 'hand_on TERM' TERM
trap 'hand_on USR1' USR1
[ ! -e "$job.stopped" ] || leave "$drained"
[ -r "$RAY_AUTH_TOKEN_PATH" ] || fail "$RAY_AUTH_TOKEN_PATH cannot be read on $(hostname); the submission's folder must be on a disk that all nodes share"
setup || fail "a line of setup failed"

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(address_of "$first")
[ -n "$address" ] || fail "$first has no address${interface:+ on interface $interface}; set interface in the cluster's file"
free=$(free_port) || fail "there is no python; set setup or bin in the cluster's file"
[ "$port" != 0 ] || port=$(free_port)
export RAY_ADDRESS=$address:$port

# All ports are free ones, so that jobs can share a node; Ray's client server, which nothing uses here, insists on one too.
srun "${share[@]}" --nodes=1 --ntasks=1 --nodelist="$first" \
  ray start --head --block --node-ip-address="$address" --port="$port" --num-cpus="$cpus" --num-gpus="$gpus" \
  --dashboard-host=127.0.0.1 --dashboard-agent-listen-port=0 --ray-client-server-port="$free" \
  --temp-dir="$temp" --disable-usage-stats >>"$job.ray" 2>&1 &
steps+=($!)
until (: >"/dev/tcp/$address/$port") 2>/dev/null; do
  kill -0 "${steps[0]}" 2>/dev/null || fail "Ray did not start on $first:"
  [ -z "$told" ] || leave "$drained"
  [ "$SECONDS" -lt "$start_s" ] || fail "Ray on $first did not answer within start_s = $start_s s:"
  sleep 0.2
done
if [ "$nodes" -gt 1 ]; then
  srun "${share[@]}" --nodes=$((nodes - 1)) --ntasks=$((nodes - 1)) --exclude="$first" \
    ray start --address="$RAY_ADDRESS" --block --num-cpus="$cpus" --num-gpus="$gpus" \
    --dashboard-agent-listen-port=0 --temp-dir="$temp" --disable-usage-stats >>"$job.ray" 2>&1 &
  steps+=($!)
fi
attend python -P -m cluster.joined "$nodes" $((start_s - SECONDS))
[ "$code" = 0 ] || fail "the job was not started; see $job.ray:"

attend "${command[@]}"
# Killed by what it was told before it could listen: nothing is lost, it goes on from its last checkpoint.
[ -z "$told" ] || [ "$code" -le 128 ] || code=$drained
leave "$code"
