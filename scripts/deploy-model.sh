#!/bin/sh
# `dwcp ops deploy-model` by the name that the playbook uses.
exec "$(dirname "$(readlink -f "$0")")/../.venv/bin/dwcp" ops deploy-model "$@"
