//! Live resize on the node: what the scheduler accepted is carried out and reported, whatever happens in between.

use std::os::unix::fs::FileExt as _;

use tessera_agent::cluster::Cluster as _;
use tessera_types::{PodId, PodUid};
use tessera_wire::resize::{Report, State, Status};

use super::support::{A, Api, B, Pod};
use super::{Node, one};
use tessera_wire::keys;

/// The scheduler's answer and the booking that goes with it.
async fn answer(node: &Node, pod: &Pod, booked: &str, status: &Status) {
    let id = PodId {
        namespace: "default".into(),
        name: pod.name.clone(),
        uid: PodUid::new(pod.uid()).unwrap(),
    };
    let annotations = [
        (keys::NVIDIA_ALLOCATED.to_owned(), Some(booked.to_owned())),
        (keys::TESSERA_RESIZE_STATUS.to_owned(), Some(status.print())),
    ];
    node.api.annotate_pod(&id, &annotations.into()).await.unwrap();
}

fn status(generation: u64, target: &str) -> Status {
    Status {
        generation,
        state: State::Accepted,
        message: String::new(),
        request: "{}".into(),
        policy: None,
        target: target.into(),
        priority: [].into(),
    }
}

fn text(card: &str, mib: u64, cores: u32) -> String {
    format!("{card},NVIDIA,{mib},{cores}:;")
}

fn report(api: &Api, pod: &Pod) -> Option<Report> {
    Report::parse(api.annotations(pod).get(keys::TESSERA_RESIZE_REPORT)?)
}

async fn reported(node: &Node, pod: &Pod, generation: u64, state: State) -> Report {
    let there =
        |api: &Api| report(api, pod).is_some_and(|found| found.generation == generation && found.state == state);
    node.api.until("reported", there).await;
    report(&node.api, pod).unwrap()
}

/// Lets programs of the container hold so much of its first card.
fn hold(node: &Node, pod: &Pod, mib: u64) {
    let grant = node.grant(pod, "c");
    let dir = tessera_region::fs::GrantDir::new(&node.settings.paths.grants, grant.id);
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(dir.account_file())
        .unwrap();
    // The total of the first card is the first word behind the head.
    file.write_all_at(&(mib << 20).to_le_bytes(), 64).unwrap();
    assert_eq!(tessera_region::resize::held_bytes(&dir, 0).unwrap(), mib << 20);
}

async fn running(node: &Node, pod: &Pod) {
    node.admit(pod).await;
    node.begin(pod, "c").await;
    node.api.set_phase(pod, "Running");
}

#[tokio::test]
async fn a_share_is_raised_and_lowered_and_every_step_is_reported() {
    let node = Node::new().await;
    let pod = Pod::new("p").container("c", &[(B, 4096, 30)]);
    running(&node, &pod).await;
    answer(&node, &pod, &text(B, 8192, 40), &status(1, &text(B, 8192, 40))).await;
    let said = reported(&node, &pod, 1, State::Applied).await;
    assert_eq!(said.holds, text(B, 8192, 40));
    assert_eq!(node.sealed(&pod, "c"), one(B, 8192, 400));

    // Lower: the booking stays until the report.
    hold(&node, &pod, 1000);
    answer(&node, &pod, &text(B, 8192, 40), &status(2, &text(B, 1024, 10))).await;
    let said = reported(&node, &pod, 2, State::Applied).await;
    assert_eq!(said.holds, text(B, 1024, 10));
    assert_eq!(node.sealed(&pod, "c"), one(B, 1024, 100));
    // The agent wrote its report and left the booking to the scheduler.
    assert_eq!(node.api.annotations(&pod)[keys::NVIDIA_ALLOCATED], text(B, 8192, 40));
}

#[tokio::test]
async fn below_what_is_held_is_refused_or_waits_by_policy() {
    let node = Node::new().await;
    let pod = Pod::new("p").container("c", &[(A, 4096, 0)]);
    running(&node, &pod).await;
    hold(&node, &pod, 3000);
    answer(&node, &pod, &text(A, 4096, 0), &status(1, &text(A, 2048, 0))).await;
    let said = reported(&node, &pod, 1, State::Refused).await;
    assert_eq!(said.holds, text(A, 4096, 0));
    assert_eq!(
        said.message,
        format!(
            "container `c` holds 3000 MiB of card {A}, and is to have 2048 MiB; let it free memory first, or set annotation \
             `tessera.dev/resize-policy` to `wait`"
        )
    );
    assert_eq!(node.sealed(&pod, "c"), one(A, 4096, 0));

    let patient = Status {
        policy: Some("wait".into()),
        ..status(2, &text(A, 2048, 0))
    };
    answer(&node, &pod, &text(A, 4096, 0), &patient).await;
    let said = reported(&node, &pod, 2, State::Waiting).await;
    assert_eq!(said.holds, text(A, 4096, 0));
    hold(&node, &pod, 2048);
    let said = reported(&node, &pod, 2, State::Applied).await;
    assert_eq!(said.holds, text(A, 2048, 0));
    assert_eq!(node.sealed(&pod, "c"), one(A, 2048, 0));
}

#[tokio::test]
async fn what_a_container_was_not_started_for_is_refused_with_the_reason() {
    let node = Node::new().await;
    let free = Pod::new("free").container("c", &[(A, 4096, 0)]);
    let whole = Pod::new("whole").container("c", &[(B, 40_960, 100)]);
    running(&node, &free).await;
    running(&node, &whole).await;
    answer(&node, &free, &text(A, 4096, 30), &status(1, &text(A, 4096, 30))).await;
    let said = reported(&node, &free, 1, State::Refused).await;
    assert!(said.message.contains("without a limit of its time"), "{}", said.message);
    assert_eq!(said.holds, text(A, 4096, 0));
    answer(&node, &whole, &text(B, 40_960, 100), &status(1, &text(B, 4096, 50))).await;
    let said = reported(&node, &whole, 1, State::Refused).await;
    assert!(said.message.contains("has its cards whole"), "{}", said.message);
}

#[tokio::test]
async fn a_killed_agent_goes_on_and_a_restarted_container_keeps_its_new_share() {
    let mut node = Node::new().await;
    let pod = Pod::new("p").container("c", &[(B, 4096, 30)]);
    running(&node, &pod).await;
    // Told while the agent is away.
    node.api.silence(true);
    let lowered = status(1, &text(B, 2048, 30));
    answer(&node, &pod, &text(B, 4096, 30), &lowered).await;
    node.api.silence(false);
    node.restart_agent().await;
    reported(&node, &pod, 1, State::Applied).await;
    assert_eq!(node.sealed(&pod, "c"), one(B, 2048, 300));
    let applied = Status {
        state: State::Applied,
        priority: [("c".to_owned(), 3)].into(),
        ..lowered
    };
    answer(&node, &pod, &text(B, 2048, 30), &applied).await;
    node.restart_agent().await;
    let again = Status {
        priority: [("c".to_owned(), 3)].into(),
        ..status(2, &text(B, 2048, 20))
    };
    answer(&node, &pod, &text(B, 2048, 30), &again).await;
    reported(&node, &pod, 2, State::Applied).await;
    // Its process ended and is started again.
    node.begin(&pod, "c").await;
    assert_eq!(node.sealed(&pod, "c"), one(B, 2048, 200));
    assert_eq!(node.grant(&pod, "c").cards()[0].priority, 3);
}

#[tokio::test]
async fn a_version_of_the_pod_from_before_changes_nothing_and_a_refusal_brings_back_what_is_booked() {
    let node = Node::new().await;
    let pod = Pod::new("p").container("c", &[(B, 4096, 30)]);
    running(&node, &pod).await;
    answer(&node, &pod, &text(B, 4096, 30), &status(5, &text(B, 1024, 30))).await;
    reported(&node, &pod, 5, State::Applied).await;
    answer(&node, &pod, &text(B, 8192, 30), &status(4, &text(B, 8192, 30))).await;
    let refused = Status {
        state: State::Refused,
        ..status(6, "")
    };
    answer(&node, &pod, &text(B, 4096, 30), &refused).await;
    answer(&node, &pod, &text(B, 4096, 30), &status(7, &text(B, 4096, 20))).await;
    reported(&node, &pod, 7, State::Applied).await;
    assert_eq!(node.sealed(&pod, "c"), one(B, 4096, 200));
}

#[tokio::test]
async fn the_booking_follows_the_grant_only_to_other_cards() {
    let node = Node::new().await;
    let pod = Pod::new("p").container("c", &[(B, 4096, 30)]);
    running(&node, &pod).await;
    // A larger booking without an answer, as while the scheduler writes: nothing is written back.
    let grown = Pod {
        containers: vec![("c".into(), false, vec![(B.to_owned(), 8192, 40)])],
        ..pod.clone()
    };
    node.api.put(&grown);
    node.api.set_phase(&grown, "Running");
    answer(&node, &pod, &text(B, 8192, 40), &status(1, &text(B, 8192, 40))).await;
    reported(&node, &pod, 1, State::Applied).await;
    assert_eq!(node.api.annotations(&pod)[keys::NVIDIA_ALLOCATED], text(B, 8192, 40));
}

#[tokio::test]
async fn of_two_containers_both_change_or_neither() {
    let node = Node::new().await;
    let pod = Pod::new("p")
        .container("b", &[(A, 4096, 0)])
        .container("c", &[(A, 4096, 0)]);
    node.admit(&pod).await;
    for container in ["b", "c"] {
        node.begin(&pod, container).await;
    }
    node.api.set_phase(&pod, "Running");
    hold(&node, &pod, 3000);
    let both = |b: u64, c: u64| format!("{A},NVIDIA,{b},0:;{A},NVIDIA,{c},0:;");
    answer(&node, &pod, &both(4096, 4096), &status(1, &both(1024, 1024))).await;
    let said = reported(&node, &pod, 1, State::Refused).await;
    assert_eq!(said.holds, both(4096, 4096));
    assert!(
        said.message.contains("container `c` holds 3000 MiB"),
        "{}",
        said.message
    );
    assert_eq!(node.sealed(&pod, "b"), one(A, 4096, 0));
    answer(&node, &pod, &both(8192, 4096), &status(2, &both(8192, 3072))).await;
    let said = reported(&node, &pod, 2, State::Applied).await;
    assert_eq!(said.holds, both(8192, 3072));
    assert_eq!(
        (node.sealed(&pod, "b"), node.sealed(&pod, "c")),
        (one(A, 8192, 0), one(A, 3072, 0))
    );
}
