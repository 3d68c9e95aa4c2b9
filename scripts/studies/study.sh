# What the studies have in common; each is a script beside this one, to be run from the root of a checkout:
#   scripts/studies/NAME.sh            goes on where it was stopped, ends with exit code 75 after two hours, and is then to be run again
#   MINUTES=30 scripts/studies/NAME.sh
# When every run has ended, their slim folders, the tables and figures are put in docs/results/NAME.
set -euo pipefail

# sweep NAME WORDS...: two runs at a time, one thread each, so that a study is the same on any two cores.
sweep() {
  local name=$1
  shift
  timeout --signal=USR1 --kill-after=10m "${MINUTES:-120}m" \
    normlab train -m name="$name" hydra/launcher=joblib hydra.launcher.n_jobs=2 threads=1 "$@" || {
    local code=$?
    [[ $code == 124 ]] && code=75
    [[ $code == 75 ]] && echo "$name: time is up; the same command goes on"
    exit $code
  }
}

# publish NAME WORDS...: WORDS as `normlab report` takes them.
publish() {
  local name=$1 out=docs/results/$1
  shift
  python "$(dirname "${BASH_SOURCE[0]}")/slim.py" "${NORMLAB_OUTPUTS:-outputs}/$name" "$out/runs"
  normlab report "$out/runs" --out "$out" "$@"
}
