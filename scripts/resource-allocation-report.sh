#!/bin/sh
# `dwcp ops resource-allocation-report` by the name that the playbook uses.
exec "$(dirname "$(readlink -f "$0")")/../.venv/bin/dwcp" ops resource-allocation-report "$@"
