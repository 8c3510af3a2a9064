//! Scratch memory that the threads of a node fill together and all read afterwards.
//!
//! Each unit of a queue writes its own part, and a queue hands out no unit twice, so there are
//! never two references to a part. The caller only has to ensure that nodes are computed one after
//! the other ([`Fill::of`], [`Join::of`]). Nothing here depends on llama.cpp, so Miri can run the
//! tests (`tests/tools/miri.sh`).

use std::cell::UnsafeCell;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::work_queue::WorkQueue;

/// Memory that is used by one node after the other. It never shrinks.
#[derive(Debug)]
pub struct Scratch<T> {
    cells: Vec<UnsafeCell<T>>,
}

// SAFETY: each part of a shared scratch is written by one thread, and read by others after that
// (see `Filling` and `Joining`). So values are sent to other threads and shared by them.
unsafe impl<T: Send + Sync> Sync for Scratch<T> {}

impl<T> Default for Scratch<T> {
    fn default() -> Self {
        Self { cells: Vec::new() }
    }
}

impl<T: Default> Scratch<T> {
    /// Grows to at least `length` values.
    pub fn make_room(&mut self, length: usize) {
        self.cells.resize_with(self.cells.len().max(length), UnsafeCell::default);
    }
}

impl<T> Scratch<T> {
    /// The first values, as the last fill has left them.
    ///
    /// # Safety
    /// No thread fills the memory while the values are borrowed, and the last fill happened before.
    ///
    /// # Panics
    /// The memory is smaller than `length`.
    pub unsafe fn values(&self, length: usize) -> &[T] {
        let cells = &self.cells[..length];
        // SAFETY: all cells are initialised, and a cell has the layout of its value. The caller has
        // promised that they don't change.
        unsafe { std::slice::from_raw_parts(UnsafeCell::raw_get(cells.as_ptr()), cells.len()) }
    }
}

/// Consecutive blocks of values, each `[columns, width]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blocks {
    /// Number of blocks.
    pub count: usize,
    /// Columns of a block.
    pub columns: usize,
    /// Values of a column.
    pub width: usize,
    /// Maximum number of values of each column that a unit writes.
    pub share: usize,
}

impl Blocks {
    /// Number of units that write a block.
    fn units(&self) -> usize {
        self.width.div_ceil(self.share)
    }
}

/// A queue whose units fill memory. Each unit writes the same range of all columns of a block.
#[derive(Debug)]
pub struct Fill {
    queue: WorkQueue,
    length: usize,
    /// First value and first unit of each group of blocks.
    groups: Vec<(usize, usize, Blocks)>,
}

impl Fill {
    /// Creates a queue for consecutive groups of blocks.
    ///
    /// # Panics
    /// A share is 0.
    pub fn new(groups: impl IntoIterator<Item = Blocks>) -> Self {
        let (mut length, mut units) = (0, 0);
        let place = |blocks: Blocks| {
            assert!(blocks.share > 0, "a unit has to write something");
            let placed = (length, units, blocks);
            length += blocks.count * blocks.columns * blocks.width;
            units += blocks.count * blocks.units();
            placed
        };
        let groups = groups.into_iter().map(place).collect();
        Self { queue: WorkQueue::new(units), length, groups }
    }

    /// Number of values that are written.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Index of the first value of a group.
    pub fn start(&self, group: usize) -> usize {
        self.groups[group].0
    }

    /// Starts to fill this memory.
    ///
    /// # Safety
    /// As long as any thread has the result, or a reference derived from it, no other fill or join
    /// uses the memory, and nothing else reads it.
    ///
    /// # Panics
    /// The memory is too small.
    pub unsafe fn of<'s, T>(&'s self, scratch: &'s Scratch<T>) -> Filling<'s, T> {
        Filling { fill: self, cells: &scratch.cells[..self.length] }
    }

    /// The group, the block, and the range of its columns that a unit writes. Different units don't
    /// overlap.
    fn unit(&self, unit: usize) -> (usize, usize, Range<usize>) {
        let group = self.groups.partition_point(|&(_, first, _)| first <= unit) - 1;
        let (_, first, blocks) = self.groups[group];
        let (block, at) = ((unit - first) / blocks.units(), (unit - first) % blocks.units());
        (group, block, at * blocks.share..blocks.width.min((at + 1) * blocks.share))
    }
}

/// A fill together with its memory.
#[derive(Debug)]
pub struct Filling<'s, T> {
    fill: &'s Fill,
    cells: &'s [UnsafeCell<T>],
}

/// The values that one unit writes.
#[derive(Debug)]
pub struct Part<'s, T> {
    group: usize,
    block: usize,
    range: Range<usize>,
    /// The whole block. Other parts write the rest of it.
    cells: &'s [UnsafeCell<T>],
    width: usize,
}

impl<'s, T> Filling<'s, T> {
    /// Draws parts and writes them until none is left.
    pub fn work(&self, mut write: impl FnMut(&mut Part<'_, T>)) {
        self.fill.queue.work(|unit| {
            let (group, block, range) = self.fill.unit(unit);
            let (start, _, Blocks { columns, width, .. }) = self.fill.groups[group];
            let cells = &self.cells[start + block * columns * width..][..columns * width];
            write(&mut Part { group, block, range, cells, width });
        });
    }

    /// Waits until all parts are written, and returns them.
    pub fn wait(&self) -> &'s [T] {
        self.fill.queue.wait();
        // SAFETY: all units are done, and none is handed out again, so no part exists any more.
        // Their writes happened before (`WorkQueue::wait`). The caller of `Fill::of` has promised
        // that nothing else writes here. All cells are initialised, and a cell has the layout of
        // its value.
        unsafe { std::slice::from_raw_parts(UnsafeCell::raw_get(self.cells.as_ptr()), self.cells.len()) }
    }
}

impl<T> Part<'_, T> {
    /// The group of the part's block.
    pub fn group(&self) -> usize {
        self.group
    }

    /// Index of the block in its group.
    pub fn block(&self) -> usize {
        self.block
    }

    /// The range of each column that belongs to the part.
    pub fn range(&self) -> Range<usize> {
        self.range.clone()
    }

    /// The part's range of a column.
    ///
    /// # Panics
    /// There is no such column.
    pub fn column(&mut self, column: usize) -> &mut [T] {
        let cells = &self.cells[column * self.width..][..self.width][self.range()];
        // SAFETY: no other part has these cells (`Fill::unit`), this part is mutably borrowed as
        // long as the reference lives, and `Filling::wait` reads only after it is gone. All cells
        // are initialised, and a cell has the layout of its value.
        unsafe { std::slice::from_raw_parts_mut(UnsafeCell::raw_get(cells.as_ptr()), cells.len()) }
    }
}

/// A queue whose units compute parts of results. The thread that finishes the last part of a result
/// gets all its parts.
#[derive(Debug)]
pub struct Join {
    queue: WorkQueue,
    parts: usize,
    /// Number of finished parts of each result.
    done: Vec<AtomicUsize>,
}

impl Join {
    /// Creates a queue for `results` results of `parts` parts each.
    pub fn new(results: usize, parts: usize) -> Self {
        let done = std::iter::repeat_with(AtomicUsize::default).take(results).collect();
        Self { queue: WorkQueue::new(results * parts), parts, done }
    }

    /// Number of parts of all results.
    pub fn length(&self) -> usize {
        self.done.len() * self.parts
    }

    /// Starts to compute in this memory.
    ///
    /// # Safety
    /// As for [`Fill::of`].
    ///
    /// # Panics
    /// The memory is too small.
    pub unsafe fn of<'s, T>(&'s self, scratch: &'s Scratch<T>) -> Joining<'s, T> {
        Joining { join: self, cells: &scratch.cells[..self.length()] }
    }
}

/// A join together with its memory.
#[derive(Debug)]
pub struct Joining<'s, T> {
    join: &'s Join,
    cells: &'s [UnsafeCell<T>],
}

impl<T> Joining<'_, T> {
    /// Draws parts and computes them until none is left. `part` receives the index of a result, the
    /// index of a part, and where to write it. `last` receives a result and all its parts, at least
    /// one.
    pub fn work(&self, mut part: impl FnMut(usize, usize, &mut T), mut last: impl FnMut(usize, &mut [T])) {
        let Join { queue, parts, done } = self.join;
        queue.work(|unit| {
            let (result, at) = (unit / parts, unit % parts);
            // SAFETY: a queue hands out a unit once, so no other thread has this cell until all
            // parts of the result are done, including this one. The caller of `Join::of` has
            // promised that nothing else uses the memory.
            part(result, at, unsafe { &mut *self.cells[unit].get() });
            if done[result].fetch_add(1, Ordering::AcqRel) + 1 == *parts {
                let cells = &self.cells[result * parts..][..*parts];
                // SAFETY: all parts of the result were handed out and are done, which happened
                // before, and only one thread counts the last of them. All cells are initialised,
                // and a cell has the layout of its value.
                let all = unsafe {
                    std::slice::from_raw_parts_mut(UnsafeCell::raw_get(cells.as_ptr()), cells.len())
                };
                last(result, all);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Runs a function on three threads.
    fn together(thread: impl Fn() + Sync) {
        std::thread::scope(|scope| (0..3).for_each(|_| drop(scope.spawn(&thread))));
    }

    fn blocks(count: usize, columns: usize, width: usize, share: usize) -> Blocks {
        Blocks { count, columns, width, share }
    }

    #[test]
    fn every_value_is_in_the_part_of_one_unit() {
        let cases: [&[Blocks]; 6] = [
            &[],
            &[blocks(1, 1, 1, 1)],
            &[blocks(5, 1, 7, 3)],
            &[blocks(3, 2, 4, 9)],
            // A group without values, between others.
            &[
                blocks(2, 1, 3, 2),
                blocks(0, 4, 4, 1),
                blocks(1, 0, 4, 2),
                blocks(1, 4, 0, 2),
                blocks(1, 2, 5, 2),
            ],
            &[blocks(1, 6, 70, 32), blocks(1, 1, 8, 16)],
        ];
        for groups in cases {
            let fill = Fill::new(groups.iter().copied());
            let mut scratch = Scratch::<u8>::default();
            scratch.make_room(fill.length() + 2);
            // SAFETY: one thread, and one fill.
            let filling = unsafe { fill.of(&scratch) };
            filling.work(|part| {
                for column in 0..groups[part.group()].columns {
                    assert_eq!(part.column(column).len(), part.range().len());
                    part.column(column).iter_mut().for_each(|value| *value += 1);
                }
            });
            assert!(filling.wait().iter().all(|&value| value == 1), "{groups:?}: {:?}", filling.wait());
            // SAFETY: nothing is being filled.
            assert_eq!(unsafe { scratch.values(fill.length() + 2) }[fill.length()..], [0, 0]);
        }
    }

    #[test]
    fn threads_read_what_the_others_wrote_node_after_node() {
        let mut scratch = Scratch::<u32>::default();
        for node in 1..4 {
            let first = Fill::new([blocks(4, 1, 5, 2), blocks(1, 3, 6, 4)]);
            let second = Fill::new([blocks(1, 1, first.length(), 3)]);
            scratch.make_room(first.length());
            let mut sums = Scratch::<u32>::default();
            sums.make_room(second.length());
            together(|| {
                // SAFETY: the memory has this fill alone while these threads run.
                let (first, second) = unsafe { (first.of(&scratch), second.of(&sums)) };
                first.work(|part| {
                    for column in 0..if part.group() == 0 { 1 } else { 3 } {
                        part.column(column).fill(node);
                    }
                });
                let given = first.wait();
                second.work(|part| {
                    let range = part.range();
                    part.column(0).iter_mut().zip(&given[range]).for_each(|(to, value)| *to = value + 1);
                });
                assert_eq!(second.wait(), [node + 1; 38]);
            });
            // SAFETY: the threads have ended.
            assert_eq!(unsafe { scratch.values(38) }, [node; 38]);
        }
    }

    #[test]
    fn the_thread_that_ends_a_result_has_all_its_parts_and_each_result_is_ended_once() {
        let mut scratch = Scratch::<Vec<usize>>::default();
        for (results, parts) in [(0, 1), (1, 1), (4, 3), (2, 7)] {
            let join = Join::new(results, parts);
            scratch.make_room(join.length());
            let ended = Mutex::new(Vec::new());
            together(|| {
                // SAFETY: the memory has this join alone while these threads run.
                let joining = unsafe { join.of(&scratch) };
                joining.work(
                    |result, part, to| {
                        to.clear();
                        to.extend([result, part]);
                    },
                    |result, all| {
                        let (first, rest) = all.split_first_mut().unwrap();
                        for part in rest {
                            first.extend(part.iter());
                        }
                        ended.lock().unwrap().push((result, first.clone()));
                    },
                );
            });
            let mut ended = ended.into_inner().unwrap();
            ended.sort();
            let expected: Vec<_> = (0..results)
                .map(|result| (result, (0..parts).flat_map(|part| [result, part]).collect()))
                .collect();
            assert_eq!(ended, expected);
        }
    }

    #[test]
    #[should_panic(expected = "range end index 3")]
    fn memory_that_is_too_small_is_not_written() {
        let scratch = Scratch::<u8>::default();
        // SAFETY: one thread, and one fill.
        unsafe { Fill::new([blocks(1, 1, 3, 1)]).of(&scratch) };
    }
}
