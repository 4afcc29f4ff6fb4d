//! Allocation curves as one SVG picture.

/// From this percent on, both axes; below, every policy allocates all that arrives.
const FROM: f64 = 80.0;
const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 60.0;
const BOTTOM: f64 = 50.0;
const TOP: f64 = 40.0;
const RIGHT: f64 = 20.0;
/// Told apart by people who do not see red and green apart, too.
const COLOURS: [&str; 3] = ["#0072b2", "#d55e00", "#999999"];

fn x(percent: f64) -> f64 {
    LEFT + (percent - FROM) / (130.0 - FROM) * (WIDTH - LEFT - RIGHT)
}

fn y(percent: f64) -> f64 {
    HEIGHT - BOTTOM - (percent - FROM) / (100.0 - FROM) * (HEIGHT - TOP - BOTTOM)
}

/// The picture: cards allocated over cards arrived, in percent, one line for each policy.
pub(crate) fn svg(trace: &str, curves: &[(&str, Vec<Option<f64>>)]) -> String {
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"22\" font-size=\"15\">openb, trace {trace}: cards allocated, % of 6,212</text>\n"
    );
    let mut line = |text: String| {
        out.push_str(&text);
        out.push('\n');
    };
    for step in 0..=4_u8 {
        let percent = FROM + 5.0 * f64::from(step);
        let at = y(percent);
        line(format!(
            "<path d=\"M{LEFT} {at:.1}H{:.1}\" stroke=\"#ddd\"/><text x=\"{:.1}\" y=\"{:.1}\" \
             text-anchor=\"end\">{percent}</text>",
            WIDTH - RIGHT,
            LEFT - 8.0,
            at + 4.0
        ));
    }
    for step in 0..=5_u8 {
        let percent = FROM + 10.0 * f64::from(step);
        line(format!(
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{percent}</text>",
            x(percent),
            HEIGHT - BOTTOM + 20.0
        ));
    }
    line(format!(
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">asked for so far, % of cards</text>",
        f64::midpoint(LEFT, WIDTH),
        HEIGHT - 10.0
    ));
    for ((index, (name, points)), colour) in curves.iter().enumerate().zip(COLOURS) {
        let mut path = String::new();
        for (percent, value) in (0_u8..).map(f64::from).zip(points) {
            if let Some(value) = value.filter(|value| percent >= FROM && *value >= FROM) {
                let command = if path.is_empty() { 'M' } else { 'L' };
                path.push_str(&format!("{command}{:.1} {:.1}", x(percent), y(value)));
            }
        }
        line(format!(
            "<path d=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>"
        ));
        let end = points.last().copied().flatten().unwrap_or(0.0);
        let row = HEIGHT - BOTTOM - 70.0 + 20.0 * (0_u8..).map(f64::from).nth(index).unwrap_or(0.0);
        line(format!(
            "<text x=\"{:.1}\" y=\"{row:.1}\" fill=\"{colour}\">{name}: {end:.2} % at the end</text>",
            WIDTH - 260.0
        ));
    }
    out.push_str("</svg>\n");
    out
}
