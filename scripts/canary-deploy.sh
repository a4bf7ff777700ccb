#!/bin/sh
# `dwcp model canary` by the name that the playbook uses.
exec "$(dirname "$(readlink -f "$0")")/../.venv/bin/dwcp" model canary "$@"
