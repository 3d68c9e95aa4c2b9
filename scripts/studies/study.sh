# What the studies have in common; each is a script beside this one, to be run from the root of a checkout:
#   scripts/studies/NAME.sh                        goes on where it was; after two hours it ends with exit code 75 and is to be run again
#   MINUTES=30 JOBS=16 scripts/studies/NAME.sh     after half an hour; sixteen runs at a time
# When every run has ended, their slim folders, the tables and figures are put in docs/results/NAME.
set -euo pipefail
studies=$(dirname "${BASH_SOURCE[0]}")
deadline=$((SECONDS + ${MINUTES:-120} * 60)) # of all sweeps of the study together

# sweep NAME WORDS...: a thread for each run, so that a study is the same on any number of cores; two at a time.
sweep() {
  local name=$1 code=0
  shift
  ((SECONDS < deadline)) || later "$name"
  timeout --foreground --signal=USR1 --kill-after=10m "$((deadline - SECONDS))" \
    normlab train -m name="$name" hydra/launcher=joblib hydra.launcher.n_jobs="${JOBS:-2}" threads=1 "$@" || code=$?
  case $code in
    0) ;;
    75 | 124) later "$name" ;;
    *) exit "$code" ;;
  esac
}

later() {
  echo "$1: time is up; the same command goes on"
  exit 75
}

# noise NAME: how much one evaluation varies from latents to latents, of the first seed of every arm.
noise() {
  normlab evaluate "${NORMLAB_OUTPUTS:-outputs}/$1"/*-seed0-* checkpoint=last evaluation.repeats=5
}

# publish NAME WORDS...: WORDS as `normlab report` takes them.
publish() {
  local name=$1 out=docs/results/$1
  shift
  rm -rf "$out/runs" # of other settings there may be others
  python "$studies/slim.py" "${NORMLAB_OUTPUTS:-outputs}/$name" "$out/runs"
  normlab report "$out/runs" --out "$out" "$@"
}

# again NAME PART WORDS...: another report over the runs that are published, in a folder beside the first.
again() {
  local out=docs/results/$1
  normlab report "$out/runs" --out "$out/$2" "${@:3}"
}
