//! Starts the agent again after it died, as an init system would. A process of its own, so that it can outlive the command
//! that made a sandbox which is to be kept.

use std::{collections::BTreeMap, fs, path::PathBuf, thread, time::Duration};

use anyhow::{Context, Result};

use crate::{
    cgroup::Cgroup,
    launch::{self, Place},
    process::{self, Plan, Process},
    services::text,
    state::State,
};

/// How long a dead agent stays dead.
const RESTART_DELAY: Duration = Duration::from_secs(2);
const START_DEADLINE: Duration = Duration::from_secs(10);

/// Starts the supervisor of a sandbox whose agent's plan is stored. With `own` it becomes an owner of the sandbox.
pub fn start(state: &State, own: bool) -> Result<Process> {
    let mut arguments = vec!["supervise".to_owned(), state.id().to_owned()];
    if own {
        arguments.push("--own".to_owned());
    }
    let cgroup = Cgroup::services(state.id())?.path().to_owned();
    let plan = Plan {
        name: "supervisor".to_owned(),
        place: Place { network: None, cgroup, container: None },
        program: text(&launch::launcher()?)?,
        arguments,
        environment: BTreeMap::new(),
    };
    let mut process = Process::start(&plan, &state.logs())?;
    process.wait_for_ready_line(START_DEADLINE)?;
    Ok(process)
}

/// The supervisor's work. Ends when the sandbox is taken down.
pub fn supervise(id: &str, own: bool) -> Result<()> {
    let state = State::open(id)?;
    let _ownership = own.then(|| state.own()).transpose()?;
    let plan: Plan =
        serde_json::from_str(&fs::read_to_string(agent_plan(&state)).context("read the agent's plan")?)
            .context("read the agent's plan")?;
    let group = Cgroup::covered(id)?.child("agent");
    println!("{{\"ready\": true}}");
    let mut restarted: Option<Process> = None;
    loop {
        for pid in group.processes()? {
            process::wait_for_end(pid, None)?;
        }
        // Reaps the last one.
        drop(restarted.take());
        thread::sleep(RESTART_DELAY);
        eprintln!("the agent died: it is started again");
        restarted = Some(Process::start(&plan, &state.logs())?);
        // It has to enter its control group before it can be found there.
        while restarted.as_mut().is_some_and(|agent| agent.runs().unwrap_or(false))
            && group.processes()?.is_empty()
        {
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Keeps the plan for whoever will start the agent.
pub fn store_agent_plan(state: &State, plan: &Plan) -> Result<()> {
    fs::write(agent_plan(state), serde_json::to_vec(plan)?).context("store the agent's plan")
}

fn agent_plan(state: &State) -> PathBuf {
    state.secret("agent.json")
}
