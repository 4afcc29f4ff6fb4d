//! A test binary whose scenarios share one cluster: they run in order, each says what it proves, and the last
//! line is the one that libtest prints.

use std::future::Future;
use std::pin::Pin;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;

/// One scenario on `E`.
pub type Scenario<E> = (
    &'static str,
    for<'e> fn(&'e E) -> Pin<Box<dyn Future<Output = Result<()>> + 'e>>,
);

/// Runs the scenarios whose name contains the filter given on the command line, and prints libtest's closing line.
#[expect(clippy::print_stdout, reason = "a test runner")]
pub async fn run<E>(environment: &E, scenarios: &[Scenario<E>]) -> ExitCode {
    let filter = std::env::args()
        .skip(1)
        .find(|arg| !arg.starts_with('-'))
        .unwrap_or_default();
    let (mut passed, mut failed, mut filtered) = (0, Vec::new(), 0);
    let start = Instant::now();
    println!("\nrunning {} tests", scenarios.len());
    for (name, scenario) in scenarios {
        if !name.contains(&filter) {
            filtered += 1;
            continue;
        }
        let begun = Instant::now();
        match scenario(environment).await {
            Ok(()) => {
                println!("test {name} ... ok ({:.1} s)", begun.elapsed().as_secs_f32());
                passed += 1;
            }
            Err(error) => {
                println!(
                    "test {name} ... FAILED ({:.1} s)\n  {error:#}",
                    begun.elapsed().as_secs_f32()
                );
                failed.push(*name);
            }
        }
    }
    let word = if failed.is_empty() { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {word}. {passed} passed; {} failed; 0 ignored; 0 measured; {filtered} filtered out; finished in {:.2}s\n",
        failed.len(),
        start.elapsed().as_secs_f32()
    );
    if failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Prints why a whole suite cannot run here, and counts it where `./check` looks.
#[expect(clippy::print_stdout, reason = "a test runner")]
pub fn skip(suite: &str, reason: &str) -> ExitCode {
    println!("skipped: {suite}: {reason}");
    println!("\ntest result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n");
    note_skip(suite, reason);
    ExitCode::SUCCESS
}

/// Counts a skipped test where `./check` looks.
pub fn note_skip(suite: &str, reason: &str) {
    use std::io::Write as _;
    if let Some(file) = std::env::var_os("TESSERA_SKIPPED")
        && let Ok(mut file) = std::fs::OpenOptions::new().append(true).create(true).open(file)
    {
        // Losing the note only loses a number in the closing line.
        drop(writeln!(file, "{suite}: {reason}"));
    }
}
