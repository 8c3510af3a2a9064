//! Speed of generating training data: whole rows (event, gold answer, prompt), one thread.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};

use bespoke::task::generator::{Generator, Limits, Split};

fn rows(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("generator");
    const BATCH: u64 = 100;
    group.throughput(Throughput::Elements(BATCH));
    for max_event_chars in [120, 1800] {
        let generator = Generator::new(1, Split::Train).with_limits(Limits { max_event_chars });
        let mut next = 0;
        group.bench_function(format!("rows up to {max_event_chars} characters"), |bencher| {
            bencher.iter(|| {
                next += BATCH;
                (next..next + BATCH)
                    .map(|index| generator.row(index).messages[2].content.len())
                    .sum::<usize>()
            });
        });
    }
    group.finish();
}

criterion_group!(benches, rows);
criterion_main!(benches);
