#!/usr/bin/env bash
# Trains on Google Kubernetes Engine: makes a JobSet of the arguments, and hands it to kubectl.
set -euo pipefail

usage() {
  cat <<'TEXT'
launch/gke.sh NAME --image=IMAGE --tpu=ACCELERATOR --topology=TOPOLOGY [OPTIONS] -- ARGS
launch/gke.sh NAME --image=IMAGE --gpu=ACCELERATOR [OPTIONS] -- ARGS

Runs `python -m lenext.train --distributed ARGS` as the JobSet NAME on node pools of a cluster that
has the JobSet controller, one process a node:

  launch/gke.sh run --image=REGISTRY/lenext:1 --tpu=tpu-v5-lite-podslice --topology=4x4 -- \
      --config=configs/decoder.py:small --workdir=gs://my-bucket/run
  launch/gke.sh run --image=REGISTRY/lenext:1 --gpu=nvidia-h100-80gb --nodes=2 -- …

  --image=IMAGE       made of Dockerfile: docker build --build-arg EXTRA=tpu (or cuda13) -t IMAGE .
  --tpu=ACCELERATOR   of the node pool, as GKE calls it: tpu-v5-lite-podslice, tpu-v5p-slice,
                      tpu-v6e-slice, tpu-v4-podslice
  --topology=AxB[xC]  of a slice, in chips; a node pool holds one
  --slices=N          so many, with one mesh over them (default: 1)
  --gpu=ACCELERATOR   of the node pool: nvidia-h100-80gb, nvidia-h200-141gb, nvidia-l4 …
  --nodes=N           so many (default: 1)
  --chips=N           TPU chips or GPUs a node (default: 4 TPU chips, or all of a smaller slice; 8
                      GPUs)
  --spot              on nodes that may be preempted
  --queue=NAME        Kueue's local queue that it waits in
  --account=NAME      Kubernetes service account, which may write to the bucket
  --namespace=NAME    (default: kubectl's own)
  --attempts=N        starts at most so often (default: 20)
  --dry-run           prints the JobSet, and asks kubectl nothing
  --help              prints this

A pod that is preempted gets SIGTERM, and has 25 seconds: the training writes a checkpoint, ends
with code 75, and all pods are started again, as they are when a node is lost. Code 1 or 2, of a
training that failed or cannot be run, ends the JobSet.
TEXT
}

fail() {
  echo "error: $*" >&2
  exit 2
}

name='' image='' tpu='' topology='' gpu='' chips='' spot=false queue='' account='' namespace=''
slices=1 nodes='' attempts=20 dry_run=false train=false
while [[ $# -gt 0 ]]; do
  case $1 in
    --) train=true; shift; break ;;
    -h | --help) usage; exit 0 ;;
    --image=*) image=${1#*=} ;;
    --tpu=*) tpu=${1#*=} ;;
    --topology=*) topology=${1#*=} ;;
    --slices=*) slices=${1#*=} ;;
    --gpu=*) gpu=${1#*=} ;;
    --nodes=*) nodes=${1#*=} ;;
    --chips=*) chips=${1#*=} ;;
    --queue=*) queue=${1#*=} ;;
    --account=*) account=${1#*=} ;;
    --namespace=*) namespace=${1#*=} ;;
    --attempts=*) attempts=${1#*=} ;;
    --spot) spot=true ;;
    --dry-run) dry_run=true ;;
    -*) fail "option $1: --help lists those that there are" ;;
    *) [[ -z $name ]] || fail "argument $1: arguments of lenext.train come after --"
       name=$1 ;;
  esac
  shift
done
$train && [[ $# -gt 0 ]] || fail "should end with -- and the arguments of lenext.train"
# The name of a pod's host, NAME-workers-0-0, has at most 63 characters.
[[ $name =~ ^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$ ]] \
  || fail "NAME: should be at most 40 of a-z, 0-9 and '-', and begin with a letter, not '$name'"
[[ -n $image ]] || fail "--image=IMAGE is missing"
[[ -n $tpu || -n $gpu ]] || fail "--tpu=ACCELERATOR or --gpu=ACCELERATOR is missing"
[[ -z $tpu || -z $gpu ]] || fail "--tpu and --gpu: should be one of them"
for option in slices attempts nodes chips; do
  value=${!option}
  [[ -z $value || $value =~ ^[1-9][0-9]*$ ]] || fail "--$option=$value: should be a number from 1"
done
for option in queue account namespace tpu gpu; do
  value=${!option}
  [[ -z $value || $value =~ ^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$ ]] \
    || fail "--$option=$value: should be a name of a-z, 0-9, '.' and '-'"
done

if [[ -n $tpu ]]; then
  [[ $topology =~ ^[1-9][0-9]*(x[1-9][0-9]*){1,2}$ ]] \
    || fail "--topology=$topology: should be chips by axis, such as 4x4 or 2x2x2"
  [[ -z $nodes ]] || fail "--nodes=$nodes: follows from --topology and --chips"
  all=$((${topology//x/*}))
  chips=${chips:-$((all < 4 ? all : 4))}
  ((all % chips == 0)) || fail "--chips=$chips: should divide the $all chips of --topology=$topology"
  nodes=$((all / chips))
  resource=google.com/tpu
else
  [[ -z $topology && $slices == 1 ]] || fail "--topology and --slices: are of TPUs; for GPUs give --nodes"
  chips=${chips:-8} nodes=${nodes:-1} resource=nvidia.com/gpu
fi

# As JSON has it, which is YAML too.
quoted() {
  local text=${1//\\/\\\\}
  text=${text//\"/\\\"}
  text=${text//$'\n'/\\n}
  printf '"%s"' "${text//$'\t'/\\t}"
}

manifest() {
  cat <<TEXT
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $name
TEXT
  [[ -z $namespace ]] || echo "  namespace: $namespace"
  [[ -z $queue ]] || printf '  labels:\n    kueue.x-k8s.io/queue-name: %s\n' "$queue"
  # A slice is one node pool, and is one job's.
  [[ -z $tpu ]] || printf '  annotations:\n    alpha.jobset.sigs.k8s.io/exclusive-topology: %s\n' \
    cloud.google.com/gke-nodepool
  cat <<TEXT
spec:
  network:
    enableDNSHostnames: true
  failurePolicy:
    maxRestarts: $((attempts - 1))
    rules:
      - name: failed-by-itself
        action: FailJobSet
        onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
    - name: workers
      replicas: $slices
      template:
        spec:
          completionMode: Indexed
          parallelism: $nodes
          completions: $nodes
          backoffLimit: 0
          podFailurePolicy:
            rules:
              - action: FailJob
                onExitCodes:
                  containerName: train
                  operator: In
                  values: [1, 2]
          template:
            spec:
              restartPolicy: Never
              terminationGracePeriodSeconds: 25
TEXT
  [[ -z $account ]] || echo "              serviceAccountName: $account"
  echo "              nodeSelector:"
  if [[ -n $tpu ]]; then
    echo "                cloud.google.com/gke-tpu-accelerator: $tpu"
    echo "                cloud.google.com/gke-tpu-topology: $topology"
  else
    echo "                cloud.google.com/gke-accelerator: $gpu"
  fi
  ! $spot || echo '                cloud.google.com/gke-spot: "true"'
  cat <<TEXT
              tolerations:
                - key: $resource
                  operator: Exists
                  effect: NoSchedule
TEXT
  ! $spot || cat <<TEXT
                - key: cloud.google.com/gke-spot
                  operator: Equal
                  value: "true"
                  effect: NoSchedule
TEXT
  cat <<TEXT
              containers:
                - name: train
                  image: $(quoted "$image")
                  command: [python, -m, lenext.train, --distributed]
                  args:
TEXT
  local word
  for word in "$@"; do
    echo "                    - $(quoted "$word")"
  done
  # On TPUs JAX finds the other processes by what GKE sets.
  [[ -n $tpu ]] || cat <<TEXT
                  env:
                    - name: JAX_COORDINATOR_ADDRESS
                      value: $name-workers-0-0.$name:8476
                    - name: JAX_NUM_PROCESSES
                      value: "$nodes"
                    - name: JAX_PROCESS_ID
                      valueFrom:
                        fieldRef:
                          fieldPath: metadata.annotations['batch.kubernetes.io/job-completion-index']
TEXT
  cat <<TEXT
                  ports:
                    - containerPort: $([[ -n $tpu ]] && echo 8471 || echo 8476)
                  resources:
                    limits:
                      $resource: $chips
TEXT
}

if $dry_run; then
  manifest "$@"
  exit
fi
where=()
[[ -z $namespace ]] || where=("--namespace=$namespace")
manifest "$@" | kubectl create --filename=- "${where[@]}"
select="jobset.sigs.k8s.io/jobset-name=$name"
cat <<TEXT
what it says: kubectl logs --follow --selector=$select,batch.kubernetes.io/job-completion-index=0 ${where[*]}
its nodes cost money until it ends, or: kubectl delete jobset $name ${where[*]}
TEXT
