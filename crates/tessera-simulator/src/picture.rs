//! Three panels in one picture: allocation, fragmentation, and use of each model at the end.

use crate::simulate::{Point, Replay};

const WIDTH: f64 = 760.0;
const PANEL: f64 = 250.0;
const LEFT: f64 = 56.0;
const RIGHT: f64 = 20.0;
const GAP: f64 = 70.0;
/// Told apart by people who do not see red and green apart, too.
const COLOURS: [&str; 6] = ["#0072b2", "#d55e00", "#999999", "#009e73", "#cc79a7", "#e69f00"];

/// What a curve shows of a point.
type Value = fn(&Point) -> f64;

/// A policy's curves, one for each seed, and their mean.
struct Policy<'a> {
    name: &'a str,
    colour: &'static str,
    replays: Vec<&'a Replay>,
}

fn put(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.push_str(&text.to_string());
    out.push('\n');
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn number(count: usize) -> f64 {
    u32::try_from(count).map_or(f64::MAX, f64::from)
}

/// A scale of one axis, with whole ends.
struct Scale {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Scale {
    /// From `from` to `to` in pixels, for values whose ends are rounded to tens.
    fn new(values: impl Iterator<Item = f64>, (from, to): (f64, f64)) -> Self {
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values {
            low = low.min(value);
            high = high.max(value);
        }
        if low > high {
            (low, high) = (0.0, 0.0);
        }
        let low = (low / 10.0).floor() * 10.0;
        let high = ((high / 10.0).ceil() * 10.0).max(low + 10.0);
        Self { low, high, from, to }
    }

    fn at(&self, value: f64) -> f64 {
        self.from + (value - self.low) / (self.high - self.low) * (self.to - self.from)
    }

    /// Up to about eight round values.
    fn ticks(&self) -> Vec<f64> {
        let steps = [2.0, 5.0, 10.0, 20.0, 50.0, 100.0];
        let step = steps
            .into_iter()
            .find(|step| (self.high - self.low) / step <= 8.0)
            .unwrap_or(200.0);
        let mut ticks = Vec::new();
        let mut tick = self.low;
        while tick <= self.high {
            ticks.push(tick);
            tick += step;
        }
        ticks
    }
}

/// The picture of all replays; each policy has a colour: thin lines are seeds, the thick one their mean.
pub(crate) fn svg(replays: &[Replay], timed: bool) -> String {
    let mut policies: Vec<Policy<'_>> = Vec::new();
    for replay in replays {
        match policies.iter_mut().find(|policy| policy.name == replay.policy) {
            Some(policy) => policy.replays.push(replay),
            None => policies.push(Policy {
                name: replay.policy,
                colour: COLOURS.get(policies.len() % COLOURS.len()).copied().unwrap_or("black"),
                replays: vec![replay],
            }),
        }
    }
    let height = 3.0 * (PANEL + GAP) + 30.0;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    for (at, policy) in policies.iter().enumerate() {
        let x = LEFT + 110.0 * number(at);
        let (colour, name) = (policy.colour, escaped(policy.name));
        put(
            &mut out,
            format_args!(
                "<text x=\"{x}\" y=\"20\" fill=\"{colour}\" font-size=\"14\" font-weight=\"bold\">{name}</text>"
            ),
        );
    }
    let axis = if timed {
        "time, % of the whole"
    } else {
        "asked for so far, % of all cards"
    };
    let panels: [(&str, Value); 2] = [
        ("allocated, % of all cards", |point| point.allocated),
        ("idle, but of no use to a typical pod, % of all cards", |point| {
            point.fragmented
        }),
    ];
    // Below, every policy allocates all that is asked for.
    let from = if timed
        || replays
            .iter()
            .any(|replay| replay.points.iter().all(|point| point.at <= 80))
    {
        0
    } else {
        70
    };
    for (row, (title, value)) in (0_u8..).zip(panels) {
        let top = 50.0 + f64::from(row) * (PANEL + GAP);
        curves(&mut out, &policies, (title, axis), (top, from), value);
    }
    occupancy(&mut out, &policies, 50.0 + 2.0 * (PANEL + GAP));
    out.push_str("</svg>\n");
    out
}

fn curves(
    out: &mut String,
    policies: &[Policy<'_>],
    (title, axis): (&str, &str),
    (top, from): (f64, u32),
    value: Value,
) {
    let points = || {
        let replays = policies.iter().flat_map(|policy| &policy.replays);
        replays
            .flat_map(|replay| &replay.points)
            .filter(|point| point.at >= from)
    };
    let y = Scale::new(points().map(value), (top + PANEL, top + 12.0));
    let x = Scale::new(points().map(|point| f64::from(point.at)), (LEFT, WIDTH - RIGHT));
    put(
        out,
        format_args!("<text x=\"{LEFT}\" y=\"{top}\" font-weight=\"bold\">{title}</text>"),
    );
    for tick in y.ticks() {
        let (at, end) = (y.at(tick), WIDTH - RIGHT);
        put(
            out,
            format_args!(
                "<path d=\"M{LEFT} {at:.1}H{end}\" stroke=\"#ddd\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{tick}</text>",
                LEFT - 6.0,
                at + 4.0
            ),
        );
    }
    for tick in x.ticks() {
        let at = x.at(tick);
        put(
            out,
            format_args!(
                "<text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{tick}</text>",
                top + PANEL + 16.0
            ),
        );
    }
    put(
        out,
        format_args!(
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{axis}</text>",
            f64::midpoint(LEFT, WIDTH),
            top + PANEL + 34.0
        ),
    );
    for policy in policies {
        let mut line = |points: &[(u32, f64)], width: f64| {
            let mut path = String::new();
            for (at, value) in points.iter().filter(|(at, _)| *at >= from) {
                let command = if path.is_empty() { 'M' } else { 'L' };
                path.push_str(&format!("{command}{:.1} {:.1}", x.at(f64::from(*at)), y.at(*value)));
            }
            put(
                out,
                format_args!(
                    "<path d=\"{path}\" fill=\"none\" stroke=\"{}\" stroke-width=\"{width}\"/>",
                    policy.colour
                ),
            );
        };
        let mut sums: std::collections::BTreeMap<u32, (f64, f64)> = std::collections::BTreeMap::new();
        for replay in &policy.replays {
            let points: Vec<_> = replay.points.iter().map(|point| (point.at, value(point))).collect();
            for (at, value) in &points {
                let sum = sums.entry(*at).or_default();
                *sum = (sum.0 + value, sum.1 + 1.0);
            }
            if policy.replays.len() > 1 {
                line(&points, 0.4);
            }
        }
        let mean: Vec<_> = sums.into_iter().map(|(at, (sum, count))| (at, sum / count)).collect();
        line(&mean, 2.0);
    }
}

/// Bars: how much of each model is allocated at the end, mean over seeds.
fn occupancy(out: &mut String, policies: &[Policy<'_>], top: f64) {
    let Some(models) = policies
        .first()
        .and_then(|policy| policy.replays.first())
        .map(|replay| &replay.models)
    else {
        return;
    };
    let wide = (WIDTH - LEFT - RIGHT) / number(models.len().max(1));
    let bar = wide / (number(policies.len()) + 1.0);
    put(
        out,
        format_args!(
            "<text x=\"{LEFT}\" y=\"{top}\" font-weight=\"bold\">allocated at the end, % of each model</text>"
        ),
    );
    for tick in [0.0, 25.0, 50.0, 75.0, 100.0] {
        let at = top + PANEL - tick / 100.0 * (PANEL - 12.0);
        put(
            out,
            format_args!(
                "<path d=\"M{LEFT} {at:.1}H{}\" stroke=\"#ddd\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{tick}</text>",
                WIDTH - RIGHT,
                LEFT - 6.0,
                at + 4.0
            ),
        );
    }
    for (at, model) in models.iter().enumerate() {
        let x = LEFT + wide * number(at) + bar / 2.0;
        for (index, policy) in policies.iter().enumerate() {
            let found = policy.replays.iter().filter_map(|replay| {
                let same = replay.models.iter().find(|other| other.model == model.model)?;
                Some(same.allocated_percent)
            });
            let mean = found.sum::<f64>() / number(policy.replays.len().max(1));
            let high = mean / 100.0 * (PANEL - 12.0);
            put(
                out,
                format_args!(
                    "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{high:.1}\" fill=\"{}\"/>",
                    x + bar * number(index),
                    top + PANEL - high,
                    bar * 0.9,
                    policy.colour
                ),
            );
        }
        let (name, cards) = (escaped(&model.model), model.cards);
        put(
            out,
            format_args!(
                "<text x=\"{x:.1}\" y=\"{:.1}\" font-size=\"11\">{name}</text>",
                top + PANEL + 16.0
            ),
        );
        put(
            out,
            format_args!(
                "<text x=\"{x:.1}\" y=\"{:.1}\" font-size=\"10\">{cards} cards</text>",
                top + PANEL + 30.0
            ),
        );
    }
}
