//! "Did you mean": the known word nearest to a mistyped one.

/// Characters to insert, delete, replace or swap with their neighbour to turn `a` into `b`, without regard to case.
fn distance(a: &[char], b: &[char]) -> usize {
    let mut before_last: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.iter().enumerate() {
        let mut row = Vec::with_capacity(last.len());
        row.push(i + 1);
        for (j, to) in b.iter().enumerate() {
            let at = |row: &[usize], at: usize| row.get(at).copied().unwrap_or(usize::MAX - 1);
            let mut best = (at(&last, j) + usize::from(from != to))
                .min(at(&last, j + 1) + 1)
                .min(at(&row, j) + 1);
            let swapped = i > 0 && j > 0 && a.get(i - 1) == Some(to) && b.get(j - 1) == Some(from);
            if swapped {
                best = best.min(at(&before_last, j - 1) + 1);
            }
            row.push(best);
        }
        before_last = std::mem::replace(&mut last, row);
    }
    last.last().copied().unwrap_or(0)
}

/// The word of `known` that `word` most probably meant: at most a third of its characters differ. The first of
/// equally near words. `None` if nothing is near.
#[must_use]
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = |text: &str| -> Vec<char> { text.chars().take(128).flat_map(char::to_lowercase).collect() };
    let wanted = lower(word);
    let limit = wanted.len().div_ceil(3).clamp(1, 8);
    let mut best: Option<(usize, &str)> = None;
    for candidate in known {
        let letters = lower(candidate);
        if letters.len().abs_diff(wanted.len()) > limit {
            continue;
        }
        let far = distance(&wanted, &letters);
        if far <= limit && best.is_none_or(|(nearest, _)| far < nearest) {
            best = Some((far, candidate));
        }
    }
    best.map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn finds_what_was_meant() {
        let known = ["resourceCountName", "resourceCoreName", "memoryFactor", "defaultMemory"];
        assert_eq!(nearest("resourceCuontName", known), Some("resourceCountName"));
        assert_eq!(nearest("memory_factor", known), Some("memoryFactor"));
        assert_eq!(nearest("RESOURCECORENAME", known), Some("resourceCoreName"));
        assert_eq!(nearest("banana", known), None);
        assert_eq!(nearest("", known), None);
    }
}
