//! Plays one case: starts its processes, takes its steps, and collects every answer that is not the recorded one.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use serde_json::{Map, Value, json};
use tessera_fake_core as sim;
use tessera_testkit::conformance::enforcement::{EnforcementCase, Setup, Step, fields, fits};

use crate::{
    actor::{Actor, Reply, signal_number},
    arguments::{self, Prepared},
    outside::NotHere,
    pages,
    share::{self, Share},
    shim_support::{Container, Machine, library, mounts},
};

/// Where the reference keeps a file that our processes do not have.
const REGION: &str = "region.cache";
/// No wait of a case is meant to be shorter than this: below it is "at once", above "never".
const AT_ONCE: f64 = 2.0;

/// Beyond the largest pid that Linux gives.
const DEAD_PID: u64 = (1 << 22) + 1;

struct Stage<'m> {
    case: &'m EnforcementCase,
    machine: &'m Machine,
    driver: sim::Machine,
    containers: BTreeMap<String, Option<Container<'m>>>,
    actors: BTreeMap<String, Actor>,
    /// Names in the order of their starts.
    order: Vec<String>,
    /// Pids of those, also of the dead.
    pids: Vec<u64>,
    /// Blocks that a case passes by value.
    blocks: BTreeMap<String, String>,
}

/// Plays a case. Each step that was not answered as recorded is a member of the outcome: its number from 1, and what the
/// answer was where it differs.
pub(crate) fn play(case: &EnforcementCase, aloud: bool) -> Result<Map<String, Value>, NotHere> {
    if case.kind == "exports" && case.calls.is_empty() {
        return Ok(exported(case));
    }
    let machine = machine(case);
    let driver = sim::Machine::at(&machine.driver()).unwrap();
    if case.given.get("hide_pids") == Some(&Value::Bool(true)) {
        driver.set_odd(sim::Odd::ZERO_PID);
    }
    for name in logged(case) {
        let count_only = sim::Fault {
            name,
            nth: 1,
            times: u64::MAX,
            code: 0,
            delay_us: 0,
        };
        driver.add_fault(&count_only).unwrap();
    }
    let mut stage = Stage {
        case,
        machine: &machine,
        driver,
        containers: BTreeMap::new(),
        actors: BTreeMap::new(),
        order: Vec::new(),
        pids: Vec::new(),
        blocks: BTreeMap::new(),
    };
    stage.container("main", &case.env, case.grant.as_ref());
    if let Some(outcome) = stage.prose() {
        return Ok(outcome);
    }
    let mut outcome = Map::new();
    for (number, step) in (1..).zip(&case.calls) {
        let got = stage.step(step)?;
        if aloud {
            println!(
                "{number:>3}  {} {} {}  {}",
                step.proc,
                step.call,
                json!(step.args),
                json!(got)
            );
        }
        let differing = stage.differing(step, &got);
        if !differing.is_empty() {
            outcome.insert(number.to_string(), Value::Object(differing));
        }
    }
    // Whatever the processes did, the driver's own books must be right.
    let broken: Vec<_> = stage
        .driver
        .flaws()
        .into_iter()
        .filter(|(flaw, _)| *flaw == sim::Flaw::TooMuchMemory || *flaw == sim::Flaw::LaunchWithoutContext)
        .collect();
    assert!(broken.is_empty(), "the driver saw {broken:?}");
    Ok(outcome)
}

fn machine(case: &EnforcementCase) -> Machine {
    let given = |name: &str| case.given.get(name);
    let cards = given("cards").and_then(Value::as_u64).unwrap_or(1);
    let lacks: Vec<String> = given("driver_lacks")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        // A driver lacks a function in all its forms.
        .flat_map(|name| [name.to_owned(), format!("{name}_ptsz")])
        .collect();
    // The smallest unit, so that figures are those of the requests.
    let head = format!("granule_kib: 4\ncuda: \"13.5\"\nwithout: [{}]\n", lacks.join(", "));
    Machine::described(&head, usize::try_from(cards).unwrap(), 16384, 300)
}

/// Entries of the driver whose calls a case asks about.
fn logged(case: &EnforcementCase) -> impl Iterator<Item = String> {
    case.calls
        .iter()
        .filter(|step| step.call == "@driver")
        .filter_map(|step| step.expect.as_ref()?.get("log")?.as_str())
        .map(entry)
}

/// The entry that a line of the reference's log begins with.
fn entry(log: &str) -> String {
    log.split(' ').next().unwrap_or_default().to_owned()
}

/// Names that the case lists and the library does not export, as how many.
fn exported(case: &EnforcementCase) -> Map<String, Value> {
    let ours: Vec<&str> = include_str!("../../../tessera-shim/exports.txt").lines().collect();
    let missing = case.names.iter().filter(|name| !ours.contains(&name.as_str())).count();
    match missing {
        0 => Map::new(),
        _ => Map::from_iter([
            ("missing".to_owned(), json!(missing)),
            ("of".to_owned(), json!(case.names.len())),
        ]),
    }
}

impl<'m> Stage<'m> {
    fn folder(&self) -> PathBuf {
        self.machine.root.path().to_owned()
    }

    /// A variable's text: the case's folder, and the cards of this machine for those of the reference's.
    fn filled(&self, text: &str) -> String {
        let mut text = text.replace("{dir}", &self.folder().to_string_lossy());
        for (n, uuid) in self.machine.uuids.iter().enumerate() {
            text = text.replace(&their_uuid(n), uuid);
        }
        text
    }

    fn container(&mut self, name: &str, env: &BTreeMap<String, String>, grant: Option<&Map<String, Value>>) {
        let uuids = &self.machine.uuids;
        let about_variables = self.case.kind == "env" && name == "main";
        let mut share = match grant {
            Some(grant) => share::stated(grant, uuids),
            None => share::asked(env, uuids, about_variables),
        };
        if self.case.given.contains_key("hide_pids") {
            // Who hides its processes from containers says in the grant what a context takes.
            share.state_context(pages::CONTEXT);
        }
        let made = match share {
            Share::Nothing => None,
            Share::Cards(cards) => Some(self.machine.container_with(cards.into_iter().map(|(_, card)| card))),
            Share::Damaged => {
                let container = self.machine.container(&[1 << 30]);
                damage(&container);
                Some(container)
            }
        };
        self.containers.insert(name.to_owned(), made);
    }

    /// The container of a process: its own one if the case gives it a grant or another region's path.
    fn container_of(&mut self, step: &Step) -> String {
        let own = self.case.grant.as_ref().and_then(|grant| grant.get(&step.proc));
        let mut env = self.case.env.clone();
        env.extend(
            self.case
                .procs
                .get(&step.proc)
                .map(|own| own.env.clone())
                .unwrap_or_default(),
        );
        env.extend(step.env.clone());
        let elsewhere = step
            .env
            .get("CUDA_DEVICE_MEMORY_SHARED_CACHE")
            // A path of the tenant's own making is no other container.
            .is_some_and(|path| !path.ends_with("/mine.cache"));
        if own.is_none() && !elsewhere {
            return "main".to_owned();
        }
        if !self.containers.contains_key(&step.proc) {
            self.container(&step.proc, &env, own.and_then(Value::as_object));
        }
        step.proc.clone()
    }

    fn start(&mut self, step: &Step) -> Map<String, Value> {
        if self.actors.contains_key(&step.proc) {
            return answer(&[("ret", json!(0))]);
        }
        let name = self.container_of(step);
        let mut env = self.case.env.clone();
        env.extend(
            self.case
                .procs
                .get(&step.proc)
                .map(|own| own.env.clone())
                .unwrap_or_default(),
        );
        env.extend(step.env.clone());
        let client = env!("CARGO_BIN_EXE_cuda-client");
        let mut command = if self.case.given.contains_key("pid_offset") {
            let mut command = Command::new("unshare");
            command.args(["--pid", "--fork", "--kill-child", "--mount-proc", client]);
            command
        } else {
            Command::new(client)
        };
        for (variable, text) in &env {
            command.env(variable, self.filled(text));
        }
        match self.containers.get(&name).and_then(Option::as_ref) {
            Some(container) => container.enter(&mut command),
            None => {
                self.machine.on_machine(&mut command);
                command.env("LD_PRELOAD", library());
                mounts(&mut command, None);
            }
        }
        let errors = self.folder().join(format!("{}.stderr", step.proc));
        let mut actor = Actor::start(command, errors, &name);
        let setup = step.setup.unwrap_or(self.case.setup);
        let calls: &[&str] = match setup {
            Setup::None => &[],
            Setup::Init => &["cuInit 0"],
            Setup::Standard => &["cuInit 0", "cuDevicePrimaryCtxRetain &ctx 0", "cuCtxSetCurrent $ctx"],
        };
        let mut code = json!(0);
        for call in calls {
            let line = actor.tell(call).unwrap_or_default();
            let word = line.split(' ').next().unwrap_or_default();
            if word != "0" {
                code = word.parse::<i64>().map_or_else(|_| json!(line), |code| json!(code));
                break;
            }
        }
        self.order.push(step.proc.clone());
        self.pids.push(actor.own_pid);
        self.actors.insert(step.proc.clone(), actor);
        answer(&[("ret", code)])
    }

    fn actor(&mut self, step: &Step) -> &mut Actor {
        if !self.actors.contains_key(&step.proc) {
            let implied = Step {
                setup: None,
                env: BTreeMap::new(),
                ..step.clone()
            };
            self.start(&implied);
        }
        self.actors.get_mut(&step.proc).expect("started")
    }

    /// Pids of the processes of one container, in the order of their starts.
    fn pids(&self) -> Vec<u64> {
        self.pids.clone()
    }

    fn main(&self) -> Option<&Container<'m>> {
        self.containers.get("main").and_then(Option::as_ref)
    }

    fn step(&mut self, step: &Step) -> Result<Map<String, Value>, NotHere> {
        // A case that starts nobody by name is about one process that is there from the first step.
        if !self.case.calls.iter().any(|step| step.call == "@start") {
            self.actor(step);
        }
        let texts = || step.args.iter().filter_map(Value::as_str);
        let text = |n: usize| step.args.get(n).and_then(Value::as_str).unwrap_or_default().to_owned();
        Ok(match step.call.as_str() {
            "@start" => self.start(step),
            "@region" => {
                let pids = self.pids();
                texts()
                    .map(|name| {
                        let value = self.main().map_or(Value::Null, |main| pages::read(main, &pids, name));
                        let card = self.machine.uuids.iter().position(|uuid| value.as_str() == Some(uuid));
                        (name.to_owned(), card.map_or(value, |card| json!(their_uuid(card))))
                    })
                    .collect()
            }
            "@region_set" => {
                let pids = self.pids();
                let words = step.args.iter().filter_map(Value::as_object).flatten();
                let words: Vec<(String, u64)> = words
                    .map(|(name, value)| {
                        let value = match value {
                            Value::String(text) => match text.strip_prefix("pid:") {
                                Some(name) => self.pid_of(name).unwrap_or(0),
                                None if text == "dead-pid" => DEAD_PID,
                                None => arguments::size(text).expect("a size"),
                            },
                            value => value.as_i64().map_or(0, i64::cast_unsigned),
                        };
                        (name.clone(), value)
                    })
                    .collect();
                for (name, value) in words {
                    if let Some(main) = self.main() {
                        pages::write(main, &pids, &name, value);
                    }
                }
                Map::new()
            }
            "@region_write" => {
                std::fs::write(self.folder().join(REGION), b"anything").unwrap();
                Map::new()
            }
            "@region_exists" => answer(&[("exists", json!(self.folder().join(REGION).exists()))]),
            "@driver" => self.driver(step),
            "@sleep" => {
                let millis = step.args.first().and_then(Value::as_u64).expect("milliseconds");
                std::thread::sleep(Duration::from_millis(millis));
                Map::new()
            }
            "@kill" => {
                let signal = signal_number(&text(0));
                self.actor(step).signal(signal);
                Map::new()
            }
            "@exit" => {
                let how = text(0);
                let actor = self.actor(step);
                actor.ask(&format!("@exit {how}"), Duration::from_secs(10));
                as_map(actor.end())
            }
            "@fork" => {
                let (folder, name) = (self.folder(), text(0));
                let child = self.actor(step).fork(&folder, &name);
                self.order.push(name.clone());
                self.pids.push(child.own_pid);
                self.actors.insert(name, child);
                Map::new()
            }
            "@exec" => {
                let actor = self.actor(step);
                actor.tell("@exec");
                actor.has_kernel = false;
                actor.has_stream = false;
                // The new image answers, so it is there.
                actor.tell("@pid");
                Map::new()
            }
            "@umask" => answer(&[("umask", json!(self.actor(step).tell("@umask")))]),
            "@handler" => {
                let number = signal_number(&text(0));
                answer(&[("h", json!(self.actor(step).tell(&format!("@handler {number}"))))])
            }
            "@stderr_count" => {
                let pattern = text(0);
                let said = std::fs::read_to_string(&self.actor(step).errors).unwrap_or_default();
                let count = said
                    .lines()
                    .filter(|line| alternatives(&pattern).any(|one| line.contains(&one)));
                answer(&[("count", json!(count.count()))])
            }
            "@dlsym" => {
                let (handle, name) = (text(0), text(1));
                let line = self.actor(step).tell(&format!("@dlsym {handle} {name}"));
                answer(&[("sym", json!(line.map(|line| symbol(&line))))])
            }
            "@gpa" | "@gpa1" => self.proc_address(step),
            "@client" => return self.client(step),
            _ => self.call(step),
        })
    }

    fn driver(&mut self, step: &Step) -> Map<String, Value> {
        let mut seen = Map::new();
        for name in step.args.iter().filter_map(Value::as_str) {
            let processes = || (0..self.driver.cards()).flat_map(|card| self.driver.processes(card));
            let value = match name {
                "launches" => json!(processes().map(|process| process.launches).sum::<u64>()),
                "blocks" => json!(processes().map(|process| process.blocks).sum::<u64>()),
                // Who made none is not listed.
                "contexts_made" => json!(self.driver.processes(0).len()),
                // The arguments of a call are not kept; that it came is what the case is about.
                "log" => {
                    let log = step
                        .expect
                        .as_ref()
                        .and_then(|expect| expect.get("log"))
                        .and_then(Value::as_str);
                    let log = log.expect("an expected line");
                    match self.driver.calls_seen(&entry(log)) {
                        Some(calls) if calls > 0 => json!(log),
                        _ => json!("not called"),
                    }
                }
                used => {
                    let card = used.strip_prefix("used[").and_then(|rest| rest.strip_suffix(']'));
                    let card = card.and_then(|card| card.parse().ok()).expect("a card");
                    self.driver.reap(card);
                    json!(self.driver.used_bytes(sim::Pool::whole(card)))
                }
            };
            seen.insert(name.to_owned(), value);
        }
        seen
    }

    fn proc_address(&mut self, step: &Step) -> Map<String, Value> {
        let word = |n: usize, default: &str| match step.args.get(n) {
            Some(Value::String(text)) => text.clone(),
            Some(value) => value.to_string(),
            None => default.to_owned(),
        };
        let command = if step.call == "@gpa1" {
            format!("@gpa1 {} {} 0 f", word(0, ""), word(1, "0"))
        } else {
            format!(
                "@gpa {} {} {} {}",
                word(0, ""),
                word(1, "0"),
                word(2, "0"),
                word(3, "f")
            )
        };
        let line = self.actor(step).tell(&command).unwrap_or_default();
        let mut seen = Map::new();
        for (n, part) in line.split(' ').enumerate() {
            match part.split_once('=') {
                Some((name, value)) => seen.insert(name.to_owned(), json!(value.parse::<i64>().ok())),
                None if n == 0 => seen.insert("ret".to_owned(), json!(part.parse::<i64>().ok())),
                None => seen.insert("sym".to_owned(), json!(symbol(part))),
            };
        }
        seen
    }

    fn call(&mut self, step: &Step) -> Map<String, Value> {
        self.actor(step);
        if step.call == "cuMemImportFromShareableHandle" {
            self.foreign(step);
        }
        let by_value = step.args.iter().find_map(|arg| arg.as_str()?.strip_prefix("byval:"));
        let by_value = by_value.and_then(|name| self.blocks.get(name)).cloned();
        let actor = self.actors.get_mut(&step.proc).expect("started");
        let (prepared, text) = match by_value {
            Some(block) => {
                let prepared = arguments::prepare(actor, &step.call, &step.args[..1]);
                let flags = step.args.get(2).map_or_else(String::new, Value::to_string);
                let out = step.args[0].as_str().expect("a reference");
                (prepared, format!("@handle {} {out} {block} {flags}", step.call))
            }
            None => {
                let prepared = arguments::prepare(actor, &step.call, &step.args);
                let text = match (step.threads, step.repeat) {
                    (Some(threads), times) => format!("@threads {threads} {} {}", times.unwrap_or(1), prepared.text),
                    (None, Some(times)) => format!("@repeat {times} {}", prepared.text),
                    (None, None) => prepared.text.clone(),
                };
                (prepared, text)
            }
        };
        for (name, block) in arguments::blocks(&prepared) {
            self.blocks.insert(name.to_owned(), block.to_owned());
        }
        let asked = Instant::now();
        let actor = self.actors.get_mut(&step.proc).expect("started");
        match actor.ask(&text, arguments::wait(step.wait_s)) {
            Reply::Line(line) => Self::answered(actor, step, &prepared, &line, asked.elapsed()),
            Reply::Late => answer(&[("hangs", json!(true))]),
            Reply::Ended => as_map(actor.end()),
        }
    }

    fn answered(
        actor: &mut Actor,
        step: &Step,
        prepared: &Prepared,
        line: &str,
        elapsed: Duration,
    ) -> Map<String, Value> {
        let mut seen = if step.threads.is_some() || step.repeat.is_some() {
            let all = step.threads.unwrap_or(1) * step.repeat.unwrap_or(1);
            let done = line.parse::<u64>().ok();
            answer(&[("failed", json!(done.map(|done| all - done)))])
        } else {
            arguments::answer(actor, prepared, line)
        };
        let slow = elapsed.as_secs_f64() > AT_ONCE;
        seen.insert("elapsed_s".to_owned(), if slow { json!("late") } else { json!(0) });
        seen
    }

    /// Memory of a process of another container, open in this one as `$foreign`.
    fn foreign(&mut self, step: &Step) {
        let name = "exporter";
        if !self.actors.contains_key(name) {
            let env = BTreeMap::from([("CUDA_DEVICE_MEMORY_LIMIT".to_owned(), "8g".to_owned())]);
            self.container(name, &env, None);
            let mut command = Command::new(env!("CARGO_BIN_EXE_cuda-client"));
            let container = self.containers.get(name).and_then(Option::as_ref).expect("made above");
            container.enter(&mut command);
            let errors = self.folder().join("exporter.stderr");
            let mut owner = Actor::start(command, errors, name);
            for command in [
                "cuInit 0",
                "cuDevicePrimaryCtxRetain &ctx 0",
                "cuCtxSetCurrent $ctx",
                "@new prop 32",
                "@set prop 0 4 1",
                "@set prop 4 4 1",
                "@set prop 8 4 1",
                "cuMemCreate &h 16MiB *prop 0",
                "@new fd 8",
                "cuMemExportToShareableHandle *fd $h 1 0",
            ] {
                owner.tell(command);
            }
            self.actors.insert(name.to_owned(), owner);
        }
        let owner = self.actors.get_mut(name).expect("started");
        let fd = owner.tell("@get fd 0 4").expect("an exported file");
        let pid = owner.pid;
        self.actor(step).tell(&format!("@open foreign /proc/{pid}/fd/{fd}"));
    }

    fn pid_of(&self, name: &str) -> Option<u64> {
        self.actors.get(name).map(|actor| actor.own_pid)
    }

    fn name_of(&self, pid: &Value) -> Option<&str> {
        let process = self
            .actors
            .iter()
            .find(|(_, actor)| pid.as_u64() == Some(actor.own_pid));
        process.map(|(name, _)| name.as_str())
    }

    /// The members of an answer that are not as recorded.
    fn differing(&self, step: &Step, got: &Map<String, Value>) -> Map<String, Value> {
        let Some(expect) = &step.expect else { return Map::new() };
        let cards = self.machine.uuids.len();
        let mut differing = Map::new();
        for (name, expected) in fields(expect) {
            if pages::of_no_card(&name, cards) {
                continue;
            }
            let value = got.get(&name).cloned().unwrap_or(Value::Null);
            if name == "elapsed_s" {
                // How fast is not this runner's business; only that it was not stuck, or was where the reference is.
                let stuck = value == "late";
                if stuck != expected.get("ge").is_some() {
                    differing.insert(name, json!(if stuck { "late" } else { "at once" }));
                }
                continue;
            }
            if !fits(&expected, &value, &|name| self.pid_of(name)) {
                let value = match self.name_of(&value).filter(|_| name.ends_with(".pid")) {
                    Some(process) => json!(format!("pid:{process}")),
                    None => steady(value),
                };
                differing.insert(name, value);
            }
        }
        // An ended process or a hanging call has no return code; what happened is the answer.
        for name in ["dies", "exits", "hangs"] {
            if !differing.is_empty()
                && let Some(value) = got.get(name)
            {
                differing.insert(name.to_owned(), value.clone());
            }
        }
        // Where the reference crashed or hung, the code is what matters.
        if differing
            .keys()
            .any(|name| matches!(name.as_str(), "dies" | "exits" | "hangs"))
            && let Some(code) = got.get("ret")
        {
            differing.insert("ret".to_owned(), code.clone());
        }
        differing.retain(|name, value| !(value.is_null() && matches!(name.as_str(), "dies" | "exits" | "hangs")));
        differing
    }

    /// Cases without steps, whose property is tried in words of our own.
    fn prose(&mut self) -> Option<Map<String, Value>> {
        match self.case.id.as_str() {
            // No such file is read: a limit in it changes nothing. Nothing of it is left outside this container.
            "env-046" => Some(self.without_override_file()),
            // The reservation comes first, so a driver that fails afterwards leaves nothing booked.
            "mem-056" => Some(self.failing_driver()),
            "region-001" => Some(answer(&[("file", json!(self.folder().join(REGION).exists()))])),
            _ => None,
        }
    }

    fn own_step(call: &str) -> Step {
        Step {
            proc: "a".to_owned(),
            call: call.to_owned(),
            args: Vec::new(),
            expect: None,
            repeat: None,
            threads: None,
            wait_s: None,
            setup: None,
            env: BTreeMap::new(),
        }
    }

    fn without_override_file(&mut self) -> Map<String, Value> {
        let actor = self.actor(&Self::own_step("@start"));
        actor.tell("nvmlInit_v2");
        let library = std::fs::read(library()).unwrap();
        let named = library.windows(12).any(|part| part == b"/overrideEnv");
        let refused = self.actor(&Self::own_step("@start")).tell("cuMemAlloc_v2 &p 725MiB");
        answer(&[
            ("file_named", json!(named)),
            ("over_the_limit", json!(refused.map(|line| code(&line)))),
        ])
    }

    fn failing_driver(&mut self) -> Map<String, Value> {
        self.actor(&Self::own_step("@start"));
        let mut seen = Map::new();
        for (entry, call) in [
            ("cuMemAllocManaged", "cuMemAllocManaged &p 100MiB 1"),
            ("cuMemAllocPitch_v2", "cuMemAllocPitch_v2 &p &w 1MiB 100 4"),
            ("cuMemAlloc_v2", "cuMemAlloc_v2 &p 100MiB"),
        ] {
            let fault = sim::Fault {
                name: entry.to_owned(),
                nth: 1,
                times: 1,
                code: 999,
                delay_us: 0,
            };
            self.driver.add_fault(&fault).unwrap();
            let line = self.actor(&Self::own_step("@start")).tell(call).unwrap_or_default();
            seen.insert(entry.to_owned(), json!(code(&line)));
        }
        let pids = self.pids();
        let held = self
            .main()
            .map(|main| pages::read(main, &pids, "procs[0].used[0].total"));
        seen.insert("total".to_owned(), held.unwrap_or_default());
        seen
    }

    /// An unmodified Python client in the container.
    fn client(&mut self, step: &Step) -> Result<Map<String, Value>, NotHere> {
        let cache = std::env::var_os("TESSERA_CACHE").map_or_else(
            || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache/tessera"),
            PathBuf::from,
        );
        let python = cache.join("venv-clients/bin/python");
        if !python.exists() {
            return Err(NotHere(
                "no environment with the Python clients; crates/tessera-fake-cuda/tests/clients.sh makes it",
            ));
        }
        let script = match self.case.id.as_str() {
            "client-001" => NVML_CLIENT,
            "client-002" => BINDINGS_CLIENT,
            _ => CORE_CLIENT,
        };
        let mut command = Command::new(python);
        command.args(["-c", script]);
        self.main().expect("a grant").enter(&mut command);
        let output = command.output().unwrap();
        let mut seen: Map<String, Value> = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|_| answer(&[("output", json!(String::from_utf8_lossy(&output.stderr)))]));
        if step
            .expect
            .as_ref()
            .is_some_and(|expect| expect.get("stderr").is_some())
        {
            seen.insert(
                "stderr".to_owned(),
                json!(String::from_utf8_lossy(&output.stderr).trim()),
            );
        }
        Ok(seen)
    }
}

const NVML_CLIENT: &str = r#"
import json, pynvml as n
n.nvmlInit()
d = n.nvmlDeviceGetHandleByIndex(0)
a = n.nvmlDeviceGetMemoryInfo(d)
b = n.nvmlDeviceGetMemoryInfo(d, version=n.nvmlMemory_v2)
print(json.dumps({
    "first": {"total": a.total, "used": a.used, "free": a.free},
    "second": {"total": b.total, "used": b.used, "free": b.free, "reserved": b.reserved},
}))
"#;

const BINDINGS_CLIENT: &str = r#"
import json
from cuda.bindings import driver as c
c.cuInit(0)
_, context = c.cuDevicePrimaryCtxRetain(0)
c.cuCtxSetCurrent(context)
codes = [int(c.cuMemAlloc(size << 20)[0]) for size in (700, 100)]
try:
    third = int(c.cuMemAllocAsync(100 << 20, 0)[0])
except Exception as e:
    third = f"{type(e).__name__}: {e}"
print(json.dumps({"codes": codes, "third": third}))
"#;

const CORE_CLIENT: &str = r#"
import json
from cuda.core import Device
from cuda.bindings import driver as c
device = Device(0)
device.set_current()
stream = device.create_stream()
buffer = device.allocate(64 << 20, stream=stream)
buffer.close()
stream.sync()
c.cuCtxSynchronize()
print(json.dumps({"free_after": int(c.cuMemGetInfo()[1])}))
"#;

/// UUID of a card of the reference's machine.
fn their_uuid(card: usize) -> String {
    format!("GPU-00000000-0000-0000-0000-{:012}", card + 1)
}

fn damage(container: &Container<'_>) {
    use std::os::unix::fs::PermissionsExt as _;
    let file = container.dir().grant_file();
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[320] ^= 1;
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    std::fs::write(&file, bytes).unwrap();
}

fn answer<const N: usize>(members: &[(&str, Value); N]) -> Map<String, Value> {
    members
        .iter()
        .map(|(name, value)| ((*name).to_owned(), value.clone()))
        .collect()
}

fn as_map(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

/// An address is another one in each run.
fn steady(value: Value) -> Value {
    match value.as_u64() {
        Some(number) if number >> 40 > 0 && number >> 47 == 0 => json!("an address"),
        _ => value,
    }
}

fn code(line: &str) -> Option<i64> {
    line.split(' ').next().and_then(|word| word.parse().ok())
}

/// `library:name` as the cases write it.
fn symbol(found: &str) -> String {
    let Some((file, name)) = found.split_once(':') else {
        return found.to_owned();
    };
    let library = match file {
        "libvgpu.so" => "hook",
        _ if file.starts_with("libcuda") => "driver",
        _ if file.starts_with("libnvidia-ml") => "nvml",
        other => other,
    };
    format!("{library}:{name}")
}

/// `HAMI-core (Msg|Warn)` as the texts that it stands for.
fn alternatives(pattern: &str) -> impl Iterator<Item = String> {
    let (before, list) = pattern.split_once('(').unwrap_or((pattern, ")"));
    let list = list.trim_end_matches(')').to_owned();
    let before = before.to_owned();
    list.split('|')
        .map(|one| format!("{before}{one}"))
        .collect::<Vec<_>>()
        .into_iter()
}
