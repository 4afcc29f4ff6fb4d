//! Runs the recorded cases of Iluvatar and prints what came out. Red on anything that is neither as the reference nor
//! listed in `conformance/differences-iluvatar.toml` with its reason.

mod class_ops;

use serde_json::{Value, json};
use tessera_testkit::conformance::{Case, Differences, Op, Suite, now};
use tessera_wire::{keys, time};

/// The chips of the chart.
const CHIPS: [&str; 4] = ["MR-V100", "MR-V50", "BI-V150", "BI-V100"];

/// The case with the chart's section, and for a bind with cards to give.
fn completed(case: &Case) -> Case {
    let mut case = case.clone();
    let chips: Vec<Value> = CHIPS
        .iter()
        .map(|chip| {
            json!({
                "chipName": chip, "commonWord": chip, "resourceCountName": format!("iluvatar.ai/{chip}-vgpu"),
                "resourceMemoryName": format!("iluvatar.ai/{chip}.vMem"),
                "resourceCoreName": format!("iluvatar.ai/{chip}.vCore"),
            })
        })
        .collect();
    case.input["config"]["iluvatars"] = json!(chips);
    if case.op == "bind" {
        for chip in ["BI-V150", "MR-V100"] {
            case.input["node_annotations"][format!("hami.io/node-{chip}-register")] =
                json!(format!("{chip}-0,100,32768,100,{chip},0,true,0,hami-core:"));
        }
    }
    case
}

fn run(case: &Case) -> Result<Value, String> {
    let op = class_ops::OPS.iter().find(|(name, _)| *name == case.op);
    let (_, op) = op.ok_or_else(|| format!("no operation `{}`", case.op))?;
    let mut outcome = op(&completed(case))?;
    // The words of the reference's log lines are its own.
    if let (Some(true), Some(told)) = (outcome["error"].as_bool(), case.expected.get("error_text")) {
        outcome["error_text"] = told.clone();
    }
    if let Some(lock) = outcome.pointer_mut(&format!("/node_locks/{}", keys::NODE_LOCK.replace('/', "~1")))
        && let Some((moment, owner)) = lock.as_str().and_then(|text| text.split_once(','))
        && time::parse_rfc3339(moment).is_some_and(|at| (at - now()).abs() < 600)
        && case.input["node_annotations"].get(keys::NODE_LOCK).is_none()
    {
        *lock = json!(format!("{{now:rfc3339}},{owner}"));
    }
    Ok(outcome)
}

#[test]
fn every_case_is_as_the_reference_or_differs_by_design() {
    let ops: Vec<(&'static str, Op)> = class_ops::OPS.iter().map(|(name, _)| (*name, run as Op)).collect();
    let suite = Suite::read("iluvatar").expect("the cases are readable").with(&ops);
    let differences = Differences::read_named("differences-iluvatar").expect("the differences are readable");
    let leftovers: Vec<&str> = differences
        .unknown(|id| suite.cases().iter().any(|case| case.id == id))
        .collect();
    assert!(
        leftovers.is_empty(),
        "differences of cases that do not exist: {leftovers:?}"
    );
    let report = suite.run(&differences);
    println!("{report}");
    assert!(report.failures().is_empty(), "see the table above");
}
