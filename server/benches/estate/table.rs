//! Figures side by side.

/// One measure over all programs.
pub struct Row {
    pub measure: String,
    /// One for each program, in their order.
    pub values: Vec<f64>,
    pub decimals: usize,
    /// What we want to reach, in words; may be empty.
    pub aim: &'static str,
}

impl Row {
    pub fn new(measure: impl Into<String>, decimals: usize, values: Vec<f64>, aim: &'static str) -> Row {
        Row { measure: measure.into(), values, decimals, aim }
    }
}

/// Prints the rows with a column for each program and, when there are two, their ratio.
pub fn print(title: &str, programs: &[&str], rows: &[Row]) {
    let width = rows.iter().map(|row| row.measure.chars().count()).max().unwrap_or(0);
    let ratio_of = match programs {
        [first, second] => format!("{first}/{second}"),
        _ => String::new(),
    };
    println!("\n{title}\n");
    print!("  {:width$}", "");
    programs.iter().for_each(|program| print!("  {program:>10}"));
    println!("  {ratio_of:>14}  aim");
    for row in rows {
        print!("  {:width$}", row.measure);
        row.values.iter().for_each(|value| print!("  {value:>10.*}", row.decimals));
        let ratio = match row.values.as_slice() {
            [first, second] if *second > 0.0 => format!("{:.2}", first / second),
            _ => String::new(),
        };
        println!("  {ratio:>14}  {}", row.aim);
    }
}

/// The value that half of the values do not exceed; 0 for none.
pub fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// The value that this share of the values does not exceed; 0 for none.
pub fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
}
