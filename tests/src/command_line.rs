//! The commands of `snowfence-sandbox`.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::{
    Environment, Pod, Sandbox,
    bench::{self, Plan, Probe},
    demo, launch, node,
    python::{self},
    state::{self, State},
    supervisor,
};

/// The pod that programs run in unless they ask for another.
const POD: &str = "main";

/// The sandbox of Snowfence: everything on one machine, in namespaces of its own.
#[derive(Debug, Parser)]
#[command(name = "snowfence-sandbox")]
pub struct Arguments {
    #[command(subcommand)]
    command: Job,
}

#[derive(Debug, Subcommand)]
enum Job {
    /// Bring a sandbox up, run a program in its pod, take the sandbox down.
    Run(Run),
    /// Run a program in the pod of a sandbox that was kept.
    Enter {
        id: String,
        #[arg(last = true, required = true)]
        program: Vec<String>,
    },
    /// Take a sandbox down.
    Down { id: String },
    /// Take down every sandbox whose owner is gone.
    Sweep,
    /// Run the main job on real input, and tell the story.
    Demo {
        #[arg(long, value_name = "FILE")]
        binary: Option<PathBuf>,
    },
    /// Measure what Snowfence costs.
    Bench {
        #[arg(value_enum)]
        what: Measured,
        /// Pairs of each figure.
        #[arg(long, default_value_t = 200)]
        pairs: usize,
        /// Statements that questions are asked about.
        #[arg(long, default_value_t = 4_000_000)]
        rows: u64,
        /// Print JSON.
        #[arg(long)]
        json: bool,
        /// The agent's binary.
        #[arg(long, value_name = "FILE")]
        binary: Option<PathBuf>,
    },
    /// Install the packages for clients in Node.
    Node,
    /// Make the Python environments, and print where they are: name and interpreter.
    Python,
    #[command(hide = true)]
    Probe {
        #[arg(value_enum)]
        probe: Probe,
        pairs: usize,
        without: String,
        with: String,
    },
    #[command(hide = true)]
    Launch {
        place: String,
        #[arg(last = true, required = true)]
        program: Vec<String>,
    },
    #[command(hide = true)]
    Init {
        container: String,
        #[arg(last = true, required = true)]
        program: Vec<String>,
    },
    #[command(hide = true)]
    Supervise {
        id: String,
        #[arg(long)]
        own: bool,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Measured {
    /// The kernel programs.
    Capture,
    /// Questions in ClickHouse.
    Questions,
    /// Large results.
    Results,
}

#[derive(Args, Debug)]
struct Run {
    /// Leave the sandbox up afterwards.
    #[arg(long)]
    keep: bool,
    /// Be root of the pod's namespaces, with NET_ADMIN and NET_RAW.
    #[arg(long)]
    root: bool,
    /// The major version of the Python connector.
    #[arg(long, value_enum, default_value = "5")]
    driver: Driver,
    /// A Cedar policy in place of the default one.
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// A configuration in place of the default one.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The agent's binary.
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    #[arg(last = true, required = true)]
    program: Vec<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Driver {
    #[value(name = "4")]
    Classic,
    #[value(name = "5")]
    Native,
}

impl From<Driver> for Environment {
    fn from(driver: Driver) -> Self {
        match driver {
            Driver::Classic => Self::Connector4,
            Driver::Native => Self::Connector5,
        }
    }
}

impl Arguments {
    /// Does the job, and returns the exit status.
    pub fn run(self) -> Result<u8> {
        match self.command {
            Job::Run(run) => run.run(),
            Job::Enter { id, program } => Pod::open(&State::open(&id)?, POD)?.run_in_the_foreground(program),
            Job::Down { id } => {
                State::open(&id)?;
                state::remove(&id)?;
                say(&format!("sandbox {id} is gone"));
                Ok(0)
            }
            Job::Sweep => {
                let swept = state::sweep()?;
                say(&format!("{} abandoned sandboxes removed", swept.len()));
                let left = state::ids()?;
                if !left.is_empty() {
                    say(&format!("still up, with an owner: {}", left.join(", ")));
                }
                Ok(0)
            }
            Job::Demo { binary } => demo::run(binary, say).map(|all_held| u8::from(!all_held)),
            Job::Bench { what, pairs, rows, json, binary } => {
                let plan = Plan { pairs, rows, json, binary, say };
                match what {
                    Measured::Capture => bench::capture(&plan),
                    Measured::Questions => bench::questions(&plan),
                    Measured::Results => bench::results(&plan),
                }
                .map(|()| 0)
            }
            Job::Probe { probe, pairs, without, with } => {
                println!("{}", serde_json::to_string(&probe.run(pairs, &without, &with)?)?);
                Ok(0)
            }
            Job::Node => node::prepare(&say).map(|()| 0),
            Job::Python => {
                python::prepare(&Environment::ALL, &say)?;
                for environment in Environment::ALL {
                    println!("{} {}", environment.name(), environment.python()?.display());
                }
                Ok(0)
            }
            Job::Launch { place, program } => launch::launch(&place, &program),
            Job::Init { container, program } => launch::init(&container, &program),
            Job::Supervise { id, own } => supervisor::supervise(&id, own).map(|()| 0),
        }
    }
}

impl Run {
    fn run(self) -> Result<u8> {
        let mut builder = Sandbox::builder().driver(self.driver.into()).progress(say);
        if let Some(path) = self.policy {
            builder = builder.policy(path);
        }
        if let Some(path) = self.config {
            builder = builder.configuration(path);
        }
        if let Some(path) = self.binary {
            builder = builder.binary(path);
        }
        let mut sandbox = builder.start()?;
        let supervisor = sandbox.supervise(self.keep)?;
        let pod = if self.root { sandbox.root_pod(POD) } else { sandbox.pod(POD) }.context("make the pod")?;
        say(&format!("sandbox {}: up, running {}", sandbox.id(), self.program.join(" ")));
        let status = pod.run_in_the_foreground(&self.program)?;
        if self.keep {
            // Its value would end it.
            std::mem::forget(supervisor);
            say(&how_to_use(&sandbox));
            sandbox.keep();
        } else {
            // Before the agent: it would be started again.
            drop(supervisor);
        }
        Ok(status)
    }
}

fn how_to_use(sandbox: &Sandbox) -> String {
    let (id, state) = (sandbox.id(), sandbox.state());
    format!(
        "\
sandbox {id} stays up
  enter its pod:        cargo xtask sandbox --in {id} -- sh
  the agent's log:      {logs}/agent.log (the other logs lie beside it)
  what arrived:         {upstream}
  the configuration:    {configuration}
  take it down:         cargo xtask sandbox --down {id}",
        logs = state.logs().display(),
        upstream = state.public("upstream.jsonl").display(),
        configuration = sandbox.configuration().display(),
    )
}

/// Progress goes to standard error: standard output is the program's.
fn say(text: &str) {
    eprintln!("{text}");
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn what_follows_the_dashes_is_the_programs_own() {
        let arguments =
            Arguments::try_parse_from(["x", "run", "--driver", "4", "--", "sh", "-c", "--keep", "--", "x"])
                .unwrap();
        let Job::Run(run) = arguments.command else { panic!("another job") };
        assert_eq!(run.program, ["sh", "-c", "--keep", "--", "x"]);
        assert!(!run.keep);
        assert!(Arguments::try_parse_from(["x", "run"]).is_err());
        assert!(Arguments::try_parse_from(["x", "run", "--driver", "3", "--", "sh"]).is_err());
    }
}
