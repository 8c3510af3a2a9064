//! Promises of packing: shares of domains, what follows from a position, and rows that are too
//! long.

use super::TrainError;
use super::batch::{Batch, batch, eval_rows};
use super::data::{Mixture, Position, Row, Source};
use super::recipe::{LongRows, Stage};
use super::tests::{Copies, STAGE, domain};

/// Texts of so many tokens.
struct Letters(usize);

impl Source for Letters {
    fn row(&self, _: u64, _: Option<usize>) -> Result<Row, TrainError> {
        // A letter that the vocabulary has not seen is a token of its own.
        Ok(Row::Text("Q".repeat(self.0)))
    }
    fn place(&self, index: u64) -> String {
        format!("letters, row {index}")
    }
}

#[test]
fn domains_are_read_by_their_weights_however_long_their_rows() {
    let mixture = Mixture::new(vec![domain(Letters(100)), domain(Letters(700))], 1);
    for weights in [[0.5, 0.5], [0.8, 0.2], [0.1, 0.9]] {
        for size in 1..=16 {
            let stage = Stage { seq_len: 1024, batch: size, ..STAGE };
            let (mut position, mut long, mut rows) = (Position::default(), 0, 0);
            let (mut tokens, mut padded) = (0, 0);
            for _ in 0..64 / size + 16 {
                let (made, after) = batch(&mixture, &weights, stage, &position, LongRows::Error).unwrap();
                position = after;
                let lens = made.rows.iter().flat_map(|row| &row.documents).map(|(_, len)| *len);
                long += lens.filter(|len| *len == 700).count();
                rows += made.documents();
                tokens += made.tokens();
                padded += size * 1024;
            }
            let share = long as f64 / rows as f64;
            assert!((share - weights[1]).abs() < 0.03, "{weights:?}, batch {size}: {share} of {rows} rows");
            // With nine long rows for each short one, a packed row has 711 tokens.
            assert!(tokens * 100 > padded * 65, "batch {size}: {tokens} of {padded} tokens are no padding");
        }
    }
}

#[test]
fn batches_follow_from_the_position_alone() {
    let mixture = Mixture::new(vec![domain(Copies), domain(Letters(60))], 1);
    let made = |position: &Position| batch(&mixture, &[1.0, 1.0], STAGE, position, LongRows::Skip).unwrap();
    let (first, mut after) = made(&Position::default());
    assert!(first.rows.iter().all(|row| row.ids.len() == 96));
    for _ in 0..20 {
        if after.waiting.is_empty() {
            after = made(&after).1;
        }
    }
    let (second, last) = made(&after);
    assert_ne!(second.rows, first.rows);
    // As a checkpoint keeps it.
    let kept: Position = serde_json::from_str(&serde_json::to_string(&after).unwrap()).unwrap();
    assert_eq!(kept, after);
    assert!(!kept.waiting.is_empty(), "the test shows nothing about rows that wait");
    let (again, same) = made(&kept);
    assert!(again.rows == second.rows && same == last);
}

#[test]
fn no_row_that_was_drawn_is_lost() {
    let mixture = Mixture::new(vec![domain(Copies)], 1);
    let (mut position, mut found) = (Position::default(), 0);
    for _ in 0..30 {
        let (made, after) =
            batch(&mixture, &[1.0], Stage { batch: 1, ..STAGE }, &position, LongRows::Error).unwrap();
        found += made.documents();
        position = after;
    }
    let drawn = mixture.draw(&mut position.clone(), 96).row as usize;
    assert_eq!(found + position.waiting.len(), drawn);
}

#[test]
fn rows_that_are_too_long_are_counted_or_refused() {
    let mixture = Mixture::new(vec![domain(Copies)], 1);
    let short = Stage { seq_len: 26, ..STAGE };
    let made = |long_rows| -> Result<Batch, TrainError> {
        batch(&mixture, &[1.0], short, &Position::default(), long_rows).map(|(made, _)| made)
    };
    let found = made(LongRows::Skip).unwrap();
    assert!(found.too_long > 0 && found.rows.iter().all(|row| row.tokens() <= 26));
    let error = made(LongRows::Error).unwrap_err().to_string();
    assert!(error.contains("copies, row ") && error.contains("seq_len is 26"), "{error}");
    let error = eval_rows(&domain(Copies), short, 20, LongRows::Error).unwrap_err().to_string();
    assert!(error.contains("seq_len is 26"), "{error}");
    // A stage with shorter rows begins while some wait.
    let long = Stage { batch: 1, ..STAGE };
    let mut position = Position::default();
    while position.waiting.is_empty() {
        position = batch(&mixture, &[1.0], long, &position, LongRows::Skip).unwrap().1;
    }
    let shortest = Stage { seq_len: 12, ..STAGE };
    let error = batch(&mixture, &[1.0], shortest, &position, LongRows::Error).unwrap_err().to_string();
    assert!(error.contains("seq_len is 12"), "{error}");
}

#[test]
fn held_out_rows_keep_their_order_and_drop_none_that_fit() {
    let made = eval_rows(&domain(Copies), STAGE, 20, LongRows::Skip).unwrap();
    assert_eq!((made.documents(), made.too_long), (20, 0));
    assert!(made.rows.iter().all(|row| row.ids.len() == 96));
}

#[test]
fn held_out_texts_that_are_longer_than_a_row_are_cut() {
    let made = eval_rows(&domain(Letters(250)), STAGE, 2, LongRows::Error).unwrap();
    let lens: Vec<usize> = made.rows.iter().flat_map(|row| &row.documents).map(|(_, len)| *len).collect();
    assert_eq!((lens, made.targets(), made.too_long), (vec![96, 96, 58, 96, 96, 58], 500, 0));
}
