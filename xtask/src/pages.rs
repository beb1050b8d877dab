//! What `--help` says after the options.

pub const XTASK: &str = "\
Examples:
  cargo xtask demo                                   see the whole product work
  cargo xtask sandbox -- sh -c '\"$SANDBOX_PYTHON\" script.py'
  cargo xtask test                                   what the continuous integration runs
  cargo xtask bench                                  what it costs, on this machine";

pub const BUILD: &str = "\
Examples:
  cargo xtask build              target/debug/snowfence
  cargo xtask build --release    target/release/snowfence";

pub const SETUP: &str = "\
Installs with apt-get on Debian and Ubuntu, and names what is missing elsewhere. Python
environments go to /var/cache/snowfence for root, else to ~/.cache/snowfence, or where
SNOWFENCE_CACHE says. The other jobs do all this by themselves.

Example:
  cargo xtask setup";

pub const SANDBOX: &str = "\
Brings up, on this machine and away from its network: an emulated Snowflake, ClickHouse, an
identity provider, DNS, the agent, and a covered pod; runs CMD in the pod; takes all down; and
ends with CMD's exit status (128 and the signal's number if it was signalled, 125 if the sandbox
itself failed). Standard output is CMD's alone.

The pod has a network namespace and a control group of its own. CMD runs as the user that called
this (nobody, for root) with the machine's files, the working directory it was called in, a
fresh home, and only these variables:
  SNOWFLAKE_ACCOUNT, _HOST, _USER, _TOKEN, _DATABASE, _SCHEMA, _WAREHOUSE
                          what a client needs; the token is the identity provider's
  SSL_CERT_FILE, REQUESTS_CA_BUNDLE, NODE_EXTRA_CA_CERTS
                          the agent's internal CA
  SANDBOX_PYTHON          a Python that has the connector
  SANDBOX_UPSTREAM, SANDBOX_UPSTREAM6, SANDBOX_UPSTREAM_ALT
                          addresses of the emulated Snowflake; nothing names the last one
  SANDBOX_ALIAS, SANDBOX_UPSTREAM_ALIAS
                          another name of the account, and its address
  SANDBOX_UPSTREAM_CA, SANDBOX_UPSTREAM_LOG
                          its CA, and what arrived there (JSON lines)
  SANDBOX_UNKNOWN, SANDBOX_UNKNOWN6
                          networks in which every address is the emulated Snowflake, and none is
                          known to the agent
  SANDBOX_WITNESS_LOG     what arrived at any of these by another way than the agent (JSON lines)
  SANDBOX_CLICKHOUSE, SANDBOX_HTTP_PROXY, SANDBOX_SOCKS_PROXY, SANDBOX_DNS_OVER_HTTPS
                          URLs of ClickHouse, and of proxies and a resolver outside the pod
  SANDBOX_DNS             the resolver
  SANDBOX_CONFIG, SANDBOX_BIN
                          the agent's configuration and binary

With --root, CMD is root with the capabilities of an ordinary container, NET_ADMIN and NET_RAW.
The machine's files are root's to change, as ever: run only what you would run as root.

--config replaces the agent's configuration. The sandbox still sets agent.state_dir,
capture.cgroup, capture.bpffs, capture.nameservers, tls.upstream_ca_bundle, policy.file with
--policy, and credentials.svc where there is none.

Examples:
  cargo xtask sandbox -- sh -c '\"$SANDBOX_PYTHON\" script.py'
  cargo xtask sandbox --driver 4 --policy deploy/examples/policy.cedar -- sh
  cargo xtask sandbox --root -- sh -c 'cd tests/python && python3 -m bypass run packet_socket'
  cargo xtask sandbox --keep -- true
  cargo xtask sandbox --in a1B2c3 -- sh
  cargo xtask sandbox --down a1B2c3";

pub const DEMO: &str = "\
Ends with 0 only if each step showed what it claims. Plain text in a pipe or with NO_COLOR.

Example:
  cargo xtask demo";

pub const TEST: &str = "\
Fails, and says so, where there is no root or no BPF; --unit runs what needs neither. The battery
of bypasses runs on this machine's kernel and, as root of a container, on Debian's 6.1 and 6.12 in
emulated machines: this needs Debian on x86-64. These kernels are downloaded and kept in
target/kernels; `kernels` runs only that part.

Examples:
  cargo xtask test
  cargo xtask test kernels
  cargo xtask test --unit";

pub const BENCH: &str = "\
Figures come in pairs, with Snowfence and without it, by turns, on an otherwise idle machine. They
are told as differences and as ratios of a pair, with the smallest, the median and the largest:
what they are on another machine is another matter. `questions` has no pairs, but rows and bytes
that ClickHouse read.

Examples:
  cargo xtask bench capture
  cargo xtask bench questions --rows 10000000
  cargo xtask bench capture --pairs 1000 --json > capture.json";

pub const FUZZ: &str = "\
By libFuzzer, with the stable compiler; the first build takes some minutes. What is worth trying
each time lies in agent/fuzz/corpus, which `cargo xtask test` feeds to the same functions; new
inputs go to target/fuzz/found.

Examples:
  cargo xtask fuzz
  cargo xtask fuzz answer --seconds 600";
