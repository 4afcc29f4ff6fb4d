//! `tessera run`: one command on this machine with a share of its cards, without Kubernetes.
//!
//! The share is a grant like that of a container: written to a folder of its own, mounted where the preloaded library
//! looks for it, in a mount namespace that only the command sees. With root rights that is all; without, a user
//! namespace gives the right to mount. When the command ends the grant goes.

mod ask;
mod cards;
mod loader;
mod namespace;
mod resize;
mod wait;

use std::{
    ffi::OsString,
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, bail, ensure};
pub use ask::MemoryAsk;
use cards::Card;
pub use resize::{ResizeArgs, resize};
use tessera_region::{
    CardGrant, Grant, GrantId, GrantState, HOST_GRANTS_ROOT, LIBRARY_PATH, PRELOAD_PATH,
    fs::{self as grants, GrantDir},
};

/// Arguments of `tessera run`.
#[derive(Clone, Debug, clap::Args)]
pub struct RunArgs {
    /// Memory of each card: MiB, or with a unit (4Gi, 512Mi), or a part of the card (50%); the whole card if not given
    #[arg(long, value_name = "SIZE", value_parser = ask::parse)]
    pub memory: Option<MemoryAsk>,
    /// Share of each card's time in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub cores: u32,
    /// A card by index or UUID; may be given several times; card 0 if not given
    #[arg(long = "card", value_name = "CARD")]
    pub cards: Vec<String>,
    /// The library that holds the command to its share
    #[arg(long, value_name = "FILE")]
    pub library: Option<PathBuf>,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// Runs a command with a share and gives back its exit status: its own, or 128 and the signal's number.
///
/// # Errors
/// Everything that keeps the command from starting: no driver, no such card, more memory than a card has, no library,
/// no right to make namespaces, no such command.
pub fn run(args: &RunArgs) -> Result<ExitCode> {
    let library = library(args.library.as_deref())?;
    if let Some(program) = args.command.first() {
        loader::refuse_musl(program, std::env::var_os("PATH").as_deref())?;
    }
    let cards = cards::list().context("looking for cards")?;
    let chosen = choose(&cards, &args.cards)?;
    let root = grants_root();
    remove_leftovers(&root);
    let grant = grant(args, &chosen)?;
    let dir = grants::create_grant_dir(&root, &grant).context("writing the grant")?;
    let result = start(args, &library, &dir);
    // The command's end matters more to the caller than a folder that stays until the next run.
    let removed = grants::remove(&root, grant.id).context("removing the grant");
    let code = result?;
    removed?;
    Ok(code)
}

fn library(asked: Option<&Path>) -> Result<PathBuf> {
    let beside = std::env::current_exe()
        .ok()
        .map(|program| program.with_file_name("libvgpu.so"));
    let places: Vec<PathBuf> = match asked {
        Some(path) => vec![path.to_owned()],
        None => beside.into_iter().chain([PathBuf::from(LIBRARY_PATH)]).collect(),
    };
    match places.iter().find(|place| place.is_file()) {
        // The loader wants an absolute path: the command may change its folder.
        Some(place) => std::path::absolute(place).context("finding the library"),
        None => {
            let tried: Vec<String> = places.iter().map(|place| place.display().to_string()).collect();
            bail!("the library is not at {}; name it with --library", tried.join(" or "))
        }
    }
}

fn choose<'a>(cards: &'a [Card], asked: &[String]) -> Result<Vec<&'a Card>> {
    ensure!(!cards.is_empty(), "this machine shows no card");
    let names: Vec<&str> = if asked.is_empty() {
        vec!["0"]
    } else {
        asked.iter().map(String::as_str).collect()
    };
    let mut chosen: Vec<&Card> = Vec::new();
    for name in names {
        let found = cards
            .iter()
            .find(|card| card.uuid == name || card.index.to_string() == name);
        let Some(card) = found else {
            let known: Vec<String> = cards
                .iter()
                .map(|card| format!("{} ({})", card.index, card.uuid))
                .collect();
            bail!("there is no card `{name}`; this machine has {}", known.join(", "));
        };
        ensure!(
            !chosen.iter().any(|other| other.uuid == card.uuid),
            "card `{name}` is named twice"
        );
        chosen.push(card);
    }
    Ok(chosen)
}

fn grant(args: &RunArgs, cards: &[&Card]) -> Result<Grant> {
    let mut id = [0; 16];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut id))
        .context("reading random bytes from /dev/urandom")?;
    let mut grant = Grant::new(GrantId::from_bytes(id), "", &wait::own_mark())?;
    grant.state = GrantState::Sealed;
    for card in cards {
        let memory = args.memory.unwrap_or(MemoryAsk::WHOLE);
        let bytes = memory.bytes_of(card.total_bytes);
        ensure!(
            bytes <= card.total_bytes,
            "{} asked, but card {} ({}) has {}",
            ask::size(bytes),
            card.index,
            card.name,
            ask::size(card.total_bytes)
        );
        let share = CardGrant {
            cores_permille: args.cores * 10,
            ..CardGrant::with_memory(&card.uuid, bytes)?
        };
        grant.push_card(share).context("adding the card to the grant")?;
    }
    Ok(grant)
}

/// Apart from the grants of containers, which the node agent keeps in order.
fn grants_root() -> PathBuf {
    if namespace::is_root() {
        return Path::new(HOST_GRANTS_ROOT).with_file_name("runs");
    }
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(dir) if Path::new(&dir).is_dir() => Path::new(&dir).join("tessera/runs"),
        _ => std::env::temp_dir().join(format!("tessera-runs-{}", namespace::uid())),
    }
}

/// Removes the grants of runs that were killed.
fn remove_leftovers(root: &Path) {
    for id in grants::scan(root).unwrap_or_default() {
        let owner = grants::read_grant(&GrantDir::new(root, id));
        if owner.is_ok_and(|grant| !wait::is_alive(grant.container.as_str())) {
            // Somebody else's problem is not this command's: what cannot be removed is tried again next time.
            let (Ok(()) | Err(_)) = grants::remove(root, id);
        }
    }
}

fn start(args: &RunArgs, library: &Path, dir: &GrantDir) -> Result<ExitCode> {
    let (program, arguments) = args.command.split_first().context("no command given")?;
    let mut command = Command::new(program);
    command.args(arguments);
    command.env("LD_PRELOAD", preload(library, std::env::var_os("LD_PRELOAD")));
    let preload_file = preload_file(library, dir)?;
    namespace::prepare(&mut command, dir, preload_file.as_deref())?;
    let signals = wait::Signals::block()?;
    signals.restore_in(&mut command);
    let child = command.spawn().map_err(|error| namespace::explain(error, program))?;
    wait::until_ended(child, &signals)
}

fn preload(library: &Path, other: Option<OsString>) -> OsString {
    let mut text = library.as_os_str().to_owned();
    if let Some(other) = other.filter(|other| !other.is_empty()) {
        text.push(" ");
        text.push(other);
    }
    text
}

/// A file to mount over `/etc/ld.so.preload`, so that commands that clear their environment are held too. Only where
/// that file exists: making one would change the machine for everybody.
fn preload_file(library: &Path, dir: &GrantDir) -> Result<Option<PathBuf>> {
    if !namespace::is_root() || !Path::new(PRELOAD_PATH).is_file() {
        return Ok(None);
    }
    let others = std::fs::read_to_string(PRELOAD_PATH).context("reading /etc/ld.so.preload")?;
    let path = dir.path().join("ld.so.preload");
    std::fs::write(&path, format!("{}\n{others}", library.display())).context("writing the preload file")?;
    Ok(Some(path))
}

#[cfg(test)]
mod tests;
