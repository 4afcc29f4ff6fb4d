use clap::Parser as _;

use super::*;

#[derive(clap::Parser)]
struct Cli {
    #[command(flatten)]
    run: RunArgs,
}

fn memory(text: &str) -> Result<MemoryAsk, String> {
    ask::parse(text)
}

#[test]
fn sizes_have_units() {
    assert_eq!(memory("4096"), Ok(MemoryAsk::Bytes(4 << 30)));
    assert_eq!(memory("4Gi"), Ok(MemoryAsk::Bytes(4 << 30)));
    assert_eq!(memory("512Mi"), Ok(MemoryAsk::Bytes(512 << 20)));
    assert_eq!(memory("2G"), Ok(MemoryAsk::Bytes(2_000_000_000)));
    assert_eq!(memory("50%"), Ok(MemoryAsk::Percent(50)));
    for wrong in [
        "",
        "abc",
        "-1",
        "0",
        "0%",
        "101%",
        "4GiB",
        "1.5Gi",
        "99999999999Ti",
        "4 Gi",
    ] {
        assert!(memory(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn percent_are_of_the_card() {
    assert_eq!(MemoryAsk::Percent(50).bytes_of(15 << 30), 15 << 29);
    assert_eq!(MemoryAsk::WHOLE.bytes_of(12_345), 12_345);
    assert_eq!(MemoryAsk::Percent(33).bytes_of(16 << 30) % (1 << 20), 0);
}

#[test]
fn the_command_follows_two_dashes() {
    let parse = |words: &[&str]| Cli::try_parse_from(std::iter::once(&"run").chain(words));
    let cli = parse(&[
        "--memory", "4Gi", "--cores", "30", "--card", "1", "--", "python3", "-c", "1",
    ])
    .unwrap();
    assert_eq!(cli.run.memory, Some(MemoryAsk::Bytes(4 << 30)));
    assert_eq!((cli.run.cores, cli.run.cards), (30, vec!["1".to_owned()]));
    assert_eq!(cli.run.command, ["python3", "-c", "1"]);
    assert!(parse(&["--memory", "4Gi"]).is_err());
    assert!(parse(&["--cores", "0", "--", "true"]).is_err());
    assert!(parse(&["--cores", "101", "--", "true"]).is_err());
}

fn card(index: u32) -> Card {
    Card {
        index,
        uuid: format!("GPU-{index}"),
        name: "Tesla T4".into(),
        total_bytes: 15 << 30,
    }
}

#[test]
fn cards_are_chosen_by_index_or_uuid() {
    let cards = [card(0), card(1)];
    let names = |asked: &[&str]| -> Result<Vec<u32>> {
        let asked: Vec<String> = asked.iter().map(|&name| name.to_owned()).collect();
        Ok(choose(&cards, &asked)?.iter().map(|card| card.index).collect())
    };
    assert_eq!(names(&[]).unwrap(), [0]);
    assert_eq!(names(&["GPU-1", "0"]).unwrap(), [1, 0]);
    assert_eq!(
        names(&["7"]).unwrap_err().to_string(),
        "there is no card `7`; this machine has 0 (GPU-0), 1 (GPU-1)"
    );
    assert_eq!(
        names(&["0", "GPU-0"]).unwrap_err().to_string(),
        "card `GPU-0` is named twice"
    );
    assert!(choose(&[], &[]).is_err());
}

#[test]
fn more_than_the_card_has_is_refused() {
    let cli = Cli::try_parse_from(["run", "--memory", "16Gi", "--", "true"]).unwrap();
    let error = grant(&cli.run, &[&card(0)]).unwrap_err();
    assert_eq!(error.to_string(), "16 GiB asked, but card 0 (Tesla T4) has 15 GiB");
    let cli = Cli::try_parse_from(["run", "--memory", "15Gi", "--cores", "30", "--", "true"]).unwrap();
    let grant = grant(&cli.run, &[&card(0), &card(1)]).unwrap();
    assert_eq!(grant.cards()[1].memory_bytes, 15 << 30);
    assert_eq!(grant.cards()[1].cores_permille, 300);
}

#[test]
fn only_the_grants_of_ended_runs_are_removed() {
    let root = tempfile::tempdir().unwrap();
    let make = |id: u8, mark: &str| {
        let grant = Grant::new(GrantId::from_bytes([id; 16]), "", mark).unwrap();
        grants::create_grant_dir(root.path(), &grant).unwrap();
    };
    make(1, &wait::own_mark());
    make(2, "4194304.5");
    make(3, &format!("{}.1", std::process::id()));
    remove_leftovers(root.path());
    assert_eq!(grants::scan(root.path()).unwrap(), [GrantId::from_bytes([1; 16])]);
}

#[test]
fn what_was_preloaded_stays() {
    assert_eq!(preload(Path::new("/a.so"), None), "/a.so");
    assert_eq!(
        preload(Path::new("/a.so"), Some("/b.so /c.so".into())),
        "/a.so /b.so /c.so"
    );
}
