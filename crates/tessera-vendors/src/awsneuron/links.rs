//! Which devices of an instance type may be given together.

/// Devices of the one inference instance whose devices form a closed ring; others are an open chain.
const RING: usize = 12;
/// How many devices of a training instance may be given together, each at a multiple of the number.
const GROUPS: [usize; 4] = [1, 4, 8, 16];

/// Cores of a device of the instance type; 0 if unknown.
pub(super) fn cores_of(kind: &str) -> u32 {
    [("inf1.", 4), ("inf2.", 2), ("trn1.", 2), ("trn1n.", 2), ("trn2.", 8)]
        .into_iter()
        .find(|(family, _)| kind.starts_with(family))
        .map_or(0, |(_, cores)| cores)
}

fn is_inference(kind: &str) -> bool {
    kind.contains("inf") || kind.contains("Inf")
}

/// `count` of the free devices (indexes, ascending) that are linked; `all` is how many the node has. Without an
/// instance type nothing is known of links, and any will do.
pub(super) fn group(kind: Option<&str>, all: usize, free: &[u32], count: usize) -> Option<Vec<u32>> {
    let Some(kind) = kind else {
        return Some(free.get(..count)?.to_vec());
    };
    let is_free = |index: &u32| free.binary_search(index).is_ok();
    let size = u32::try_from(count).ok().filter(|size| *size > 0)?;
    let total = u32::try_from(all).ok()?;
    if is_inference(kind) {
        let run = |start: u32| -> Vec<u32> { (start..start.saturating_add(size)).collect() };
        let open = free.iter().map(|start| run(*start)).find(|run| run.iter().all(is_free));
        return open.or_else(|| {
            let around = |start: u32| -> Vec<u32> { run(start).into_iter().map(|index| index % total).collect() };
            (all == RING && count <= RING)
                .then(|| (0..total).map(around).find(|run| run.iter().all(is_free)))
                .flatten()
        });
    }
    if !GROUPS.contains(&count) {
        return None;
    }
    free.iter()
        .filter(|start| *start % size == 0)
        .map(|start| (*start..start.saturating_add(size)).collect::<Vec<u32>>())
        .find(|group| group.iter().all(is_free))
}

/// What the user should know about the number of devices.
pub(super) fn rule(kind: &str, count: u32) -> Option<String> {
    let known = usize::try_from(count).is_ok_and(|count| GROUPS.contains(&count));
    (!is_inference(kind) && !known)
        .then(|| format!("devices of {kind} are given together in groups of 1, 4, 8 or 16, not {count}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_rings_and_groups() {
        let ring = Some("inf2.48xlarge");
        assert_eq!(group(ring, 12, &[0, 11], 2), Some(vec![11, 0]));
        assert_eq!(
            group(ring, 12, &[0, 3, 4, 11], 2),
            Some(vec![3, 4]),
            "no need to go round"
        );
        assert_eq!(group(Some("inf2.24xlarge"), 6, &[0, 5], 2), None);
        let torus = Some("trn1.32xlarge");
        assert_eq!(group(torus, 16, &[0, 2, 3, 4, 5, 6, 7], 4), Some(vec![4, 5, 6, 7]));
        assert_eq!(group(torus, 16, &[1, 2, 3, 4], 4), None);
        assert_eq!(group(torus, 16, &[0, 1], 2), None);
        assert_eq!(group(None, 2, &[0, 1], 2), Some(vec![0, 1]));
        assert!(rule("trn2.48xlarge", 2).is_some() && rule("trn2.48xlarge", 4).is_none());
    }
}
