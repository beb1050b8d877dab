//! `cargo xtask test`: every check, one step each. A failing step's output is shown, and the others still run.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::{self, File},
    io::{IsTerminal as _, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use serde_json::Value;

use crate::{
    build,
    kernels::{self, Parts},
    privilege::Privilege,
    programs::{self, cargo},
    setup,
};

const WHY: &str = "testing the whole system (network namespaces, control groups, kernel programs)";
/// The package whose integration tests need root.
const END_TO_END: &str = "snowfence-tests";
/// Tests of the agent that are ignored unless they are asked for by name.
const ROOT_TESTS: [&str; 14] = [
    "audit::clickhouse::tests::engine::a_range_that_is_sent_twice_is_stored_once",
    "audit::clickhouse::tests::engine::another_journal_of_the_same_node_does_not_collide",
    "audit::clickhouse::tests::engine::killed_at_any_moment_each_record_arrives_exactly_once",
    "audit::clickhouse::tests::engine::records_of_any_kind_arrive_as_they_are",
    "audit::clickhouse::tests::proof::what_was_changed_there_is_found_there",
    "audit::clickhouse::tests::questions::each_question_has_the_known_answer",
    "audit::clickhouse::tests::schema_in_engine::a_cluster_has_distributed_tables_and_answers_the_same",
    "audit::clickhouse::tests::schema_in_engine::a_schema_is_taken_over_with_its_cursor_by_any_url",
    "audit::clickhouse::tests::schema_in_engine::all_ddl_is_what_the_engine_parses",
    "audit::clickhouse::tests::schema_in_engine::retention_follows_the_configuration_and_keeps_what_is_sensitive",
    "audit::clickhouse::tests::schema_in_engine::several_apply_at_once_and_each_may_be_interrupted",
    "audit::journal::tests::faults::a_full_disk_refuses_and_recovers",
    "audit::siem::tests::what_is_sent_is_valid_by_the_published_schema",
    "capture::endpoints::tests::a_hundred_thousand_learnt_names_push_out_the_oldest_and_never_what_is_known",
];
/// How often a long step says that it is alive: on a terminal, and in a log.
const GLANCE: Duration = Duration::from_millis(200);
const NEWS_IN_A_LOG: Duration = Duration::from_secs(30);
/// Characters of a program's last line that are shown as progress.
const PROGRESS_WIDTH: usize = 60;

#[derive(Args, Debug)]
pub struct Options {
    /// Only what needs neither root nor BPF.
    #[arg(long, conflicts_with = "part")]
    unit: bool,
    /// Only this part.
    part: Option<Part>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Part {
    /// The battery of bypasses on other kernels, in emulated machines.
    Kernels,
}

/// Runs the checks. Fails when any of them did.
pub fn run(root: &Path, options: &Options) -> Result<ExitCode> {
    let started = Instant::now();
    setup::packages()?;
    let privilege =
        if options.unit { None } else { Some(setup::kernel().and_then(|()| Privilege::acquire(WHY))) };
    let mut report = Report::new(programs::target(root)?.join("xtask-test"))?;

    if !options.unit {
        let mut build = Command::new(std::env::current_exe().context("find this program's own path")?);
        report.step("build the kernel programs and the agent", build.arg("build").current_dir(root))?;
    }
    if options.part == Some(Part::Kernels) {
        let tests = report.build_tests(root)?;
        report.kernels(root, &build::sandbox(root, build::Options::default())?, &tests)?;
        return Ok(report.summary(started.elapsed()));
    }
    report.step("formatting", cargo(root).args(["fmt", "--all", "--check"]))?;
    let kernel_programs = root.join("agent-ebpf/Cargo.toml");
    report.step(
        "formatting of the kernel programs",
        cargo(root).args(["fmt", "--check", "--manifest-path"]).arg(kernel_programs),
    )?;
    report.step(
        "lints",
        cargo(root).args(["clippy", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"]),
    )?;
    let tests = report.build_tests(root)?;
    for test in tests.iter().filter(|test| !test.end_to_end) {
        report.step(
            &format!("unit tests: {}", test.name),
            Command::new(&test.program).current_dir(&test.folder),
        )?;
    }
    let sandbox = build::sandbox(root, build::Options::default())?;
    if let Err(error) = setup::clients(&sandbox) {
        report.fail("clients that are not Python's", &format!("{error:#}"));
    }
    match setup::python(&sandbox) {
        Ok(interpreters) => {
            let mut command =
                Command::new(interpreters.get("upstream").context("find the Python of upstream")?);
            for (name, path) in &interpreters {
                command.env(format!("SNOWFENCE_PYTHON_{}", name.to_uppercase()), path);
            }
            command.args(["-m", "unittest", "discover"]).current_dir(root.join("tests/python"));
            report.step("Python unit tests", &mut command)?;
            if let Some(Ok(privilege)) = &privilege {
                report.agent_as_root(privilege, root, &tests, &interpreters)?;
            }
        }
        Err(error) => report.fail("Python unit tests", &format!("{error:#}")),
    }
    match privilege {
        None => {}
        Some(Ok(privilege)) => {
            report.end_to_end(&privilege, &tests)?;
            report.kernels(root, &sandbox, &tests)?;
        }
        Some(Err(error)) => {
            let message =
                format!("{error:#}. `cargo xtask test --unit` runs what needs neither root nor BPF");
            report.fail("end-to-end tests", &message);
        }
    }
    Ok(report.summary(started.elapsed()))
}

/// A test program that cargo built.
#[derive(Debug, PartialEq)]
struct TestProgram {
    name: String,
    program: PathBuf,
    /// Its package's folder, which is where cargo would run it.
    folder: PathBuf,
    end_to_end: bool,
}

/// Something that is under way.
struct Step<'a> {
    name: &'a str,
    /// Its command line.
    shown: String,
    log: PathBuf,
    child: Child,
    started: Instant,
}

/// What has been done so far.
struct Report {
    /// Each step's output.
    logs: PathBuf,
    steps: usize,
    passed: u64,
    failed: u64,
    failures: Vec<String>,
}

impl Report {
    fn new(logs: PathBuf) -> Result<Self> {
        if logs.exists() {
            fs::remove_dir_all(&logs).with_context(|| format!("remove {}", logs.display()))?;
        }
        fs::create_dir_all(&logs).with_context(|| format!("make {}", logs.display()))?;
        Ok(Self { logs, steps: 0, passed: 0, failed: 0, failures: Vec::new() })
    }

    /// Runs a command to its end. Its tests are counted, or the step itself when it has none.
    fn step(&mut self, name: &str, command: &mut Command) -> Result<bool> {
        let step = self.start(name, command)?;
        self.end(step)
    }

    fn start<'a>(&mut self, name: &'a str, command: &mut Command) -> Result<Step<'a>> {
        self.steps += 1;
        let log = self.logs.join(format!("{:02}-{}.log", self.steps, file_name(name)));
        let output = File::create(&log).with_context(|| format!("make {}", log.display()))?;
        let errors = output.try_clone().context("share the log")?;
        let shown = programs::shown(command);
        let child = command
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .spawn()
            .with_context(|| format!("start {shown}"))?;
        Ok(Step { name, shown, log, child, started: Instant::now() })
    }

    fn end(&mut self, mut step: Step<'_>) -> Result<bool> {
        let mut progress = Progress::start(step.name);
        let status = loop {
            if let Some(status) = step.child.try_wait().context("wait for a step")? {
                break status;
            }
            thread::sleep(GLANCE);
            progress.tell(step.started.elapsed(), &step.log);
        };
        progress.end();
        let Step { name, shown, log, started, .. } = step;
        let text = fs::read(&log).with_context(|| format!("read {}", log.display()))?;
        let text = String::from_utf8_lossy(&text);
        let counts = count_tests(&text);
        let passed = status.success() && counts.is_none_or(|(_, failed)| failed == 0);
        match counts {
            Some((good, bad)) => {
                self.passed += good;
                // A program that dies has failed, whatever it counted.
                self.failed += bad.max(u64::from(!passed));
            }
            None if passed => self.passed += 1,
            None => self.failed += 1,
        }
        let tests = counts.map(|(good, bad)| format!(", {good} passed, {bad} failed")).unwrap_or_default();
        let verdict = if passed { "ok    " } else { "FAILED" };
        println!("{verdict} {name} ({:.1} s{tests})", started.elapsed().as_secs_f64());
        if !passed {
            println!("{text}\n  ({shown}: {status}; the same output is in {})", log.display());
            self.failures.push(name.to_owned());
        }
        Ok(passed)
    }

    fn fail(&mut self, name: &str, why: &str) {
        println!("FAILED {name}: {why}");
        self.failed += 1;
        self.failures.push(name.to_owned());
    }

    /// Builds all test programs at once, so that every dependency is built once, and says where they are.
    fn build_tests(&mut self, root: &Path) -> Result<Vec<TestProgram>> {
        let messages = self.logs.join("tests.json");
        let mut command = cargo(root);
        command.args([
            "test",
            "--locked",
            "--workspace",
            "--no-run",
            "--message-format",
            "json-render-diagnostics",
        ]);
        // The messages and the errors for people come on two streams, and only the second belongs into the log.
        let script = "out=$1; shift; exec \"$@\" > \"$out\"";
        let mut shell = Command::new("sh");
        shell.args(["-c", script, "sh"]).arg(&messages).arg(command.get_program()).args(command.get_args());
        if !self.step("build the tests", shell.current_dir(root))? {
            return Ok(Vec::new());
        }
        let text = fs::read_to_string(&messages).with_context(|| format!("read {}", messages.display()))?;
        let tests = test_programs(&text)?;
        ensure!(!tests.is_empty(), "cargo built no tests");
        Ok(tests)
    }

    /// The agent's tests that need root, the ClickHouse engine or the schema of OCSF. Plain `cargo test` leaves them out.
    fn agent_as_root(
        &mut self,
        privilege: &Privilege,
        root: &Path,
        tests: &[TestProgram],
        interpreters: &BTreeMap<String, PathBuf>,
    ) -> Result<()> {
        let step =
            "tests of the agent with the ClickHouse engine, the schema of OCSF, a full disk, and full maps";
        let Some(agent) = tests.iter().find(|test| test.name == "snowfence (lib)") else {
            self.fail(step, "the agent's tests did not build");
            return Ok(());
        };
        let mut variables = Vec::new();
        for name in ["clickhouse", "ocsf"] {
            let python = interpreters.get(name).with_context(|| format!("find the Python of {name}"))?;
            let mut program = python.clone().into_os_string();
            program.push(" ");
            program.push(root.join(format!("tests/python/{name}.py")));
            variables.push((OsString::from(format!("SNOWFENCE_TEST_{}", name.to_uppercase())), program));
        }
        let mut command = privilege.command(&agent.program, &variables);
        command
            .args(["--ignored", "--exact", "--test-threads=1"])
            .args(ROOT_TESTS)
            .current_dir(&agent.folder);
        self.step(step, &mut command).map(drop)
    }

    /// The tests of the whole system, one program after the other: each has the machine to itself.
    fn end_to_end(&mut self, privilege: &Privilege, tests: &[TestProgram]) -> Result<()> {
        let mut variables = setup::variables_for_root();
        let mut programs = tests.iter().filter(|test| test.end_to_end).peekable();
        if programs.peek().is_none() {
            self.fail("end-to-end tests", "there are none: they did not build");
        }
        for test in programs {
            variables.retain(|(name, _)| name != "CARGO_MANIFEST_DIR");
            variables.push((OsString::from("CARGO_MANIFEST_DIR"), test.folder.clone().into()));
            let mut command = privilege.command(&test.program, &variables);
            self.step(&format!("end-to-end tests: {}", test.name), command.current_dir(&test.folder))?;
        }
        Ok(())
    }

    /// The battery on other kernels, side by side: an emulated machine keeps no more than a core busy.
    fn kernels(&mut self, root: &Path, sandbox: &Path, tests: &[TestProgram]) -> Result<()> {
        let Some(battery) = tests.iter().find(|test| test.name == "bypass (test)") else {
            self.fail("tests on other kernels", "the battery did not build");
            return Ok(());
        };
        let agent = sandbox.with_file_name("snowfence");
        let parts = Parts { root, battery: &battery.program, programs: [&agent, sandbox] };
        let machines = match kernels::machines(&parts) {
            Ok(machines) => machines,
            Err(error) => {
                self.fail("tests on other kernels", &format!("{error:#}"));
                return Ok(());
            }
        };
        let names: Vec<String> =
            machines.iter().map(|(kernel, _)| format!("tests on kernel {kernel}")).collect();
        let mut steps = Vec::new();
        for (name, (_, mut command)) in names.iter().zip(machines) {
            steps.push(self.start(name, &mut command)?);
        }
        steps.into_iter().try_for_each(|step| self.end(step).map(drop))
    }

    fn summary(&self, elapsed: Duration) -> ExitCode {
        if !self.failures.is_empty() {
            println!("\nfailed: {}", self.failures.join(", "));
        }
        let seconds = elapsed.as_secs();
        println!("\n{} min {} s", seconds / 60, seconds % 60);
        println!("{} passed, {} failed", self.passed, self.failed);
        if self.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

/// Says that a long step is alive, and what it does.
struct Progress<'a> {
    name: &'a str,
    terminal: bool,
    last: Duration,
}

impl<'a> Progress<'a> {
    fn start(name: &'a str) -> Self {
        Self { name, terminal: std::io::stderr().is_terminal(), last: Duration::ZERO }
    }

    fn tell(&mut self, elapsed: Duration, log: &Path) {
        let seconds = elapsed.as_secs();
        if self.terminal {
            eprint!("\r\x1b[K  … {} {seconds} s  {}", self.name, last_line(log));
            // A terminal that is gone is no reason to end.
            let _ = std::io::stderr().flush();
        } else if elapsed.saturating_sub(self.last) > NEWS_IN_A_LOG {
            self.last = elapsed;
            eprintln!("  … {} {seconds} s  {}", self.name, last_line(log));
        }
    }

    fn end(&self) {
        if self.terminal {
            eprint!("\r\x1b[K");
        }
    }
}

/// The end of what a step has printed so far.
fn last_line(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
    line.trim().chars().filter(|character| !character.is_control()).take(PROGRESS_WIDTH).collect()
}

/// Passed and failed tests in the output of Rust's and Python's test programs; none where there are no tests at all.
fn count_tests(text: &str) -> Option<(u64, u64)> {
    let mut counts = None;
    for line in text.lines() {
        let found = rust_counts(line).or_else(|| python_counts(line, text));
        if let Some((passed, failed)) = found {
            let (before_passed, before_failed) = counts.unwrap_or((0, 0));
            counts = Some((before_passed + passed, before_failed + failed));
        }
    }
    counts
}

/// `test result: ok. 12 passed; 0 failed; …`
fn rust_counts(line: &str) -> Option<(u64, u64)> {
    let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let number = |name: &str| counts.split(';').find_map(|part| part.strip_suffix(name)?.trim().parse().ok());
    Some((number("passed")?, number("failed")?))
}

/// `Ran 12 tests in 3.4s`, and later `OK` or `FAILED (failures=1, errors=2)`.
fn python_counts(line: &str, text: &str) -> Option<(u64, u64)> {
    let ran: u64 = line.strip_prefix("Ran ")?.split(' ').next()?.parse().ok()?;
    let verdict = text.lines().rev().find(|line| line.starts_with("FAILED (") || line.starts_with("OK"));
    let verdict = verdict.unwrap_or_default().trim_start_matches("FAILED (").trim_end_matches(')');
    let counted = |part: &str| {
        let number = part.strip_prefix("failures=").or_else(|| part.strip_prefix("errors="))?;
        number.parse::<u64>().ok()
    };
    let failed: u64 = verdict.split(", ").filter_map(counted).sum();
    Some((ran.saturating_sub(failed), failed))
}

/// The test programs that cargo's messages name.
fn test_programs(messages: &str) -> Result<Vec<TestProgram>> {
    let mut programs = Vec::new();
    for line in messages.lines() {
        let message: Value = serde_json::from_str(line).context("read a message of cargo")?;
        let is_test = message.pointer("/profile/test") == Some(&Value::Bool(true));
        let (Some(program), true) = (message.get("executable").and_then(Value::as_str), is_test) else {
            continue;
        };
        let text = |pointer: &str| {
            let value = message.pointer(pointer).and_then(Value::as_str);
            value.with_context(|| format!("find {pointer} in a message of cargo"))
        };
        let folder =
            Path::new(text("/manifest_path")?).parent().context("find a package's folder")?.to_owned();
        let package = fs::read_to_string(folder.join("Cargo.toml")).unwrap_or_default();
        let of_end_to_end = package.contains(&format!("name = \"{END_TO_END}\""));
        let kind = text("/target/kind/0")?;
        programs.push(TestProgram {
            name: format!("{} ({kind})", text("/target/name")?),
            program: program.into(),
            end_to_end: of_end_to_end && kind == "test",
            folder,
        });
    }
    Ok(programs)
}

fn file_name(step: &str) -> String {
    step.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_are_counted() {
        let rust = "running 2 tests\n\ntest result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n\
                    test result: FAILED. 3 passed; 1 failed; 0 ignored\n";
        assert_eq!(count_tests(rust), Some((5, 1)));
        assert_eq!(count_tests("Ran 12 tests in 3.4s\n\nOK (skipped=1)\n"), Some((12, 0)));
        assert_eq!(count_tests("Ran 12 tests in 3.4s\n\nFAILED (failures=1, errors=2)\n"), Some((9, 3)));
        assert_eq!(count_tests("Ran 1 test in 3.4s\n\nFAILED (errors=1)\n"), Some((0, 1)));
        assert_eq!(count_tests("Diff in main.rs\n"), None);
    }

    #[test]
    fn test_programs_are_told_apart() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let message = |package: &str, kind: &str, test: bool| {
            serde_json::json!({
                "reason": "compiler-artifact",
                "manifest_path": folder.join(package).join("Cargo.toml"),
                "target": { "kind": [kind], "name": "n" },
                "profile": { "test": test },
                "executable": "/t/n",
            })
            .to_string()
        };
        let lines = [
            message("tests", "test", true),
            message("tests", "lib", true),
            message("xtask", "test", true),
            message("xtask", "bin", false),
            r#"{"reason":"build-finished","success":true}"#.to_owned(),
        ];
        let programs = test_programs(&lines.join("\n")).unwrap();
        let end_to_end: Vec<bool> = programs.iter().map(|program| program.end_to_end).collect();
        assert_eq!(end_to_end, [true, false, false]);
        assert!(test_programs("no json").is_err());
    }

    #[test]
    fn a_failing_step_is_counted_and_named() {
        let folder = std::env::temp_dir().join(format!("snowfence-xtask-{}", std::process::id()));
        let mut report = Report::new(folder.clone()).unwrap();
        assert!(report.step("good", &mut Command::new("true")).unwrap());
        assert!(!report.step("bad", Command::new("sh").args(["-c", "echo why; exit 3"])).unwrap());
        let dies = "echo 'test result: ok. 2 passed; 0 failed;'; kill -9 $$";
        assert!(!report.step("dies", Command::new("sh").args(["-c", dies])).unwrap());
        assert_eq!((report.passed, report.failed), (3, 2));
        assert_eq!(report.failures, ["bad", "dies"]);
        fs::remove_dir_all(folder).unwrap();
    }
}
