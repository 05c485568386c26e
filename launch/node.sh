#!/usr/bin/env bash
# Runs the launcher of one node for a scheduler, and exits with 75 after a signal to stop: `accelerate launch` exits with 1
# after a stop and after a crash alike, but only a crash is a failure. The same command resumes the run.
#   exec bash launch/node.sh accelerate launch --max_restarts 3 ... launch/train.py ...
export PET_SHUTDOWN_TIMEOUT=${PET_SHUTDOWN_TIMEOUT:-300} # seconds for the last checkpoint; torchrun's own limit is 30

launcher='' stopped=''
stop() {
  # once: at a second signal torchrun stops waiting for its processes
  if [ -n "$launcher" ] && [ -z "$stopped" ]; then kill -TERM "$launcher"; fi
  stopped=75
}
trap stop TERM INT HUP USR1 # SIGUSR1 itself would kill the launcher and leave its processes behind

"$@" &
pid=$!
if [ -n "$stopped" ]; then kill -TERM $pid; fi # the signal came first
launcher=$pid
wait "$launcher"
while kill -0 "$launcher" 2>/dev/null; do wait "$launcher"; done # a signal ends `wait`, not the launcher
wait "$launcher"
code=$?
[ $code -eq 0 ] || exit "${stopped:-$code}"
