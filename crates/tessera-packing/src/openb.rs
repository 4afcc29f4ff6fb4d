//! The texts of the openb trace: nodes, pods, orders of arrival, ranks of nodes.

use crate::model::{MAX_CARDS, Models, Node, Request, TooMany, WHOLE};
use crate::workload::Workload;

/// A text that is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadTrace {
    /// A column is missing in the first line.
    #[error("{file}: no column `{column}` in the first line; found: {found}")]
    NoColumn {
        /// Which text.
        file: String,
        /// The column that was looked for.
        column: String,
        /// The first line.
        found: String,
    },
    /// A value cannot be read.
    #[error("{file}, line {line}, column `{column}`: `{value}` is not {expected}")]
    BadValue {
        /// Which text.
        file: String,
        /// Line, from 1.
        line: usize,
        /// Column by name.
        column: String,
        /// What stands there.
        value: String,
        /// What should stand there.
        expected: &'static str,
    },
    /// More than can be counted.
    #[error("{file}, line {line}: {source}")]
    TooMany {
        /// Which text.
        file: String,
        /// Line, from 1.
        line: usize,
        /// What there are too many of.
        source: TooMany,
    },
}

/// Lines of a text with named columns.
struct Table<'a> {
    file: &'a str,
    header: &'a str,
    text: &'a str,
}

impl<'a> Table<'a> {
    fn new(file: &'a str, text: &'a str) -> Self {
        Self {
            file,
            header: text.lines().next().unwrap_or_default(),
            text,
        }
    }

    fn column(&self, name: &str) -> Result<usize, BadTrace> {
        let found = self.header.split(',').position(|column| column.trim() == name);
        found.ok_or_else(|| BadTrace::NoColumn {
            file: self.file.to_owned(),
            column: name.to_owned(),
            found: self.header.to_owned(),
        })
    }

    /// Lines after the first, with their numbers; empty ones are left out.
    fn lines(&self) -> impl Iterator<Item = (usize, Vec<&'a str>)> {
        let numbered = self.text.lines().enumerate().skip(1);
        numbered
            .filter(|(_, line)| !line.trim().is_empty())
            .map(|(index, line)| (index + 1, line.split(',').map(str::trim).collect()))
    }

    fn number<T: std::str::FromStr>(&self, line: usize, cells: &[&str], column: usize) -> Result<T, BadTrace> {
        let value = cells.get(column).copied().unwrap_or_default();
        value
            .parse()
            .map_err(|_| self.bad(line, column, value, "a whole number in range"))
    }

    fn bad(&self, line: usize, column: usize, value: &str, expected: &'static str) -> BadTrace {
        BadTrace::BadValue {
            file: self.file.to_owned(),
            line,
            column: self.header.split(',').nth(column).unwrap_or_default().to_owned(),
            value: value.to_owned(),
            expected,
        }
    }
}

/// Reads a node list (`sn,cpu_milli,memory_mib,gpu,model`); `file` names it in errors.
///
/// # Errors
/// [`BadTrace`] with the line and column.
pub fn nodes(file: &str, text: &str) -> Result<(Vec<Node>, Models), BadTrace> {
    let table = Table::new(file, text);
    let [cpu, memory, cards, model] = [
        table.column("cpu_milli")?,
        table.column("memory_mib")?,
        table.column("gpu")?,
        table.column("model")?,
    ];
    let mut models = Models::default();
    let mut nodes = Vec::new();
    for (line, cells) in table.lines() {
        let count: u8 = table.number(line, &cells, cards)?;
        let over = |source| BadTrace::TooMany {
            file: file.to_owned(),
            line,
            source,
        };
        if usize::from(count) > MAX_CARDS {
            return Err(over(TooMany {
                what: "cards on one node",
                found: usize::from(count),
                most: MAX_CARDS,
            }));
        }
        nodes.push(Node {
            cpu: table.number(line, &cells, cpu)?,
            memory: table.number(line, &cells, memory)?,
            cards: count,
            model: models
                .intern(cells.get(model).copied().unwrap_or_default())
                .map_err(over)?,
        });
    }
    Ok((nodes, models))
}

/// Reads a pod list and counts its classes; `file` names it in errors.
///
/// # Errors
/// [`BadTrace`] with the line and column, also for a pod that asks for several shares or for a share of 0.
pub fn pods(file: &str, text: &str, models: &Models) -> Result<(Vec<Request>, Workload), BadTrace> {
    let table = Table::new(file, text);
    let [cpu, memory, count, milli, spec] = [
        table.column("cpu_milli")?,
        table.column("memory_mib")?,
        table.column("num_gpu")?,
        table.column("gpu_milli")?,
        table.column("gpu_spec")?,
    ];
    let mut requests = Vec::new();
    let mut workload = Workload::new();
    for (line, cells) in table.lines() {
        let cards: u8 = table.number(line, &cells, count)?;
        let part: u32 = if cards == 0 {
            0
        } else {
            table.number(line, &cells, milli)?
        };
        let whole_or_share = cards == 0 || part == WHOLE || (cards == 1 && part > 0 && part < WHOLE);
        if !whole_or_share || usize::from(cards) > MAX_CARDS {
            let value = cells.get(milli).copied().unwrap_or_default();
            return Err(table.bad(
                line,
                milli,
                value,
                "a share of one card (1 to 999) or 1000 for each of up to 8 cards",
            ));
        }
        let named = cells.get(spec).copied().unwrap_or_default();
        let request = Request {
            cpu: table.number(line, &cells, cpu)?,
            memory: table.number(line, &cells, memory)?,
            count: cards,
            milli: part,
            models: models.set(named),
        };
        workload.see(&request, named);
        requests.push(request);
    }
    Ok((requests, workload))
}

/// Reads the column of one seed: rows of pods in order of arrival, or the rank of each node. It ends at the first
/// blank.
///
/// # Errors
/// [`BadTrace`] with the line and column.
pub fn seed_column(file: &str, text: &str, seed: u32) -> Result<Vec<u32>, BadTrace> {
    let table = Table::new(file, text);
    let column = table.column(&seed.to_string())?;
    let mut values = Vec::new();
    for (line, cells) in table.lines() {
        if cells.get(column).is_none_or(|cell| cell.is_empty()) {
            break;
        }
        values.push(table.number(line, &cells, column)?);
    }
    Ok(values)
}

/// An order of arrival of one's own: the pods shuffled, then pods drawn from the list until `target` milli are asked
/// for, or taken out while it is more. For traces and seeds without a published order; it follows the published rules
/// with another source of randomness. The same seed gives the same order everywhere.
#[must_use]
pub fn own_order(pods: &[Request], target: u64, seed: u64) -> Vec<u32> {
    let mut source = Source(seed);
    let mut order = shuffled(pods.len(), &mut source);
    let demand_of = |row: u32| usize::try_from(row).ok().and_then(|row| pods.get(row));
    let mut demand: u64 = pods.iter().map(|pod| u64::from(pod.demand())).sum();
    while demand > target && !order.is_empty() {
        let row = order.remove(source.below(order.len()));
        demand -= demand_of(row).map_or(0, |pod| u64::from(pod.demand()));
    }
    if demand > 0 && order.len() == pods.len() {
        loop {
            let row = u32::try_from(source.below(pods.len())).unwrap_or(u32::MAX);
            let Some(pod) = demand_of(row) else { break };
            if demand + u64::from(pod.milli) > target {
                break;
            }
            demand += u64::from(pod.demand());
            order.push(row);
        }
    }
    order
}

/// Ranks of `count` nodes that go with [`own_order`].
#[must_use]
pub fn own_ranks(count: usize, seed: u64) -> Vec<u32> {
    // Another stream than that of the arrivals.
    shuffled(count, &mut Source(seed ^ 0x5eed_0f7a_9b1c_33d5))
}

fn shuffled(count: usize, source: &mut Source) -> Vec<u32> {
    let mut order: Vec<u32> = (0..u32::try_from(count).unwrap_or(u32::MAX)).collect();
    for last in (1..order.len()).rev() {
        order.swap(last, source.below(last + 1));
    }
    order
}

/// SplitMix64.
struct Source(u64);

impl Source {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Below `end`, which is not 0.
    fn below(&mut self, end: usize) -> usize {
        let end = u64::try_from(end).unwrap_or(u64::MAX).max(1);
        usize::try_from(self.next() % end).unwrap_or(0)
    }
}

/// When a pod came and when it left, in seconds; `None` where it stayed.
pub type Stay = (u64, Option<u64>);

/// Reads when the pods of a list came and left (`creation_time`, `deletion_time`), in the order of its rows. `None` for a
/// list without these columns; `file` names it in errors.
///
/// # Errors
/// [`BadTrace`] with the line and column.
pub fn stays(file: &str, text: &str) -> Result<Option<Vec<Stay>>, BadTrace> {
    let table = Table::new(file, text);
    let (Ok(created), Ok(deleted)) = (table.column("creation_time"), table.column("deletion_time")) else {
        return Ok(None);
    };
    let mut stays = Vec::new();
    for (line, cells) in table.lines() {
        let end = match cells.get(deleted) {
            None | Some(&"") => None,
            Some(_) => Some(table.number(line, &cells, deleted)?),
        };
        stays.push((table.number(line, &cells, created)?, end));
    }
    Ok(Some(stays))
}
