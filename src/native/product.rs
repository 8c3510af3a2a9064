//! Products of f32 matrices, by `gemm`, as Candle computes them.
//!
//! Candle's own call asks the system for the number of its processors, which reads `/proc/cpuinfo`,
//! before each product. For a small model that is a fifth of a step.

use gemm::Parallelism;

/// A matrix inside a slice: where it begins, and how far its rows and columns are apart.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// The slice.
    pub values: &'a [f32],
    /// Where the first value is.
    pub offset: usize,
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub columns: usize,
    /// Values between two rows, and between two columns.
    pub strides: [usize; 2],
}

impl View<'_> {
    /// Whether every value of the matrix is in the slice. An empty matrix has none.
    fn is_inside(&self) -> bool {
        if self.rows == 0 || self.columns == 0 {
            return true;
        }
        let last = |count: usize, stride: usize| (count - 1).checked_mul(stride);
        let [row, column] = self.strides;
        let last = last(self.rows, row)
            .zip(last(self.columns, column))
            .and_then(|(row, column)| row.checked_add(column)?.checked_add(self.offset));
        last.is_some_and(|last| last < self.values.len() && isize::try_from(last).is_ok())
    }

    fn first(&self) -> *const f32 {
        self.values[self.offset.min(self.values.len())..].as_ptr()
    }
}

/// `a b`, dense by rows, on the threads of the rayon pool that the caller runs in. The result
/// doesn't depend on their number.
///
/// # Panics
/// Inner dimensions that differ; a matrix that leaves its slice.
pub fn product(a: View, b: View) -> Vec<f32> {
    let (rows, inner, columns) = (a.rows, a.columns, b.columns);
    assert!(inner == b.rows, "a product of [{rows}, {inner}] and [{}, {columns}]", b.rows);
    assert!(a.is_inside() && b.is_inside(), "a matrix leaves its slice: {:?}, {:?}", a.strides, b.strides);
    let mut result = vec![0.0; rows * columns];
    let parallelism = match rayon::current_num_threads() {
        1 => Parallelism::None,
        threads => Parallelism::Rayon(threads),
    };
    let [a_row, a_column] = a.strides.map(|stride| stride as isize);
    let [b_row, b_column] = b.strides.map(|stride| stride as isize);
    // SAFETY: `gemm` reads `rows x inner` values of a and `inner x columns` of b at their strides,
    // which are in their slices, as was checked above, and writes `rows x columns` values of the
    // result, which is dense and as large. It doesn't read the result (`read_dst` is false).
    unsafe {
        gemm::gemm(
            rows,
            columns,
            inner,
            result.as_mut_ptr(),
            1,
            columns as isize,
            false,
            a.first(),
            a_column,
            a_row,
            b.first(),
            b_column,
            b_row,
            0.0,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|at| ((at * 7919 + seed) % 101) as f32 / 50.0 - 1.0).collect()
    }

    #[test]
    fn products_are_the_sums_that_they_should_be() {
        for [rows, inner, columns] in
            [[1, 1, 1], [3, 5, 2], [17, 64, 33], [1, 40, 9], [9, 40, 1], [2, 0, 3], [0, 4, 3]]
        {
            let (a, b) = (values(rows * inner + 3, 1), values(columns * inner, 5));
            // a begins at its fourth value; b is stored transposed.
            let left = View { values: &a, offset: 3, rows, columns: inner, strides: [inner, 1] };
            let right = View { values: &b, offset: 0, rows: inner, columns, strides: [1, inner] };
            let found = product(left, right);
            assert_eq!(found.len(), rows * columns);
            for (at, found) in found.iter().enumerate() {
                let (row, column) = (at / columns, at % columns);
                let one = |k: usize| f64::from(a[3 + row * inner + k]) * f64::from(b[column * inner + k]);
                let expected: f64 = (0..inner).map(one).sum();
                assert!((f64::from(*found) - expected).abs() < 1e-5, "{rows} {inner} {columns}: {found}");
            }
        }
    }

    #[test]
    fn the_number_of_threads_changes_no_bit() {
        let (a, b) = (values(300 * 200, 2), values(200 * 250, 3));
        let on = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let a = View { values: &a, offset: 0, rows: 300, columns: 200, strides: [200, 1] };
            let b = View { values: &b, offset: 0, rows: 200, columns: 250, strides: [250, 1] };
            pool.install(|| product(a, b)).into_iter().map(f32::to_bits).collect::<Vec<_>>()
        };
        assert!(on(1) == on(2) && on(1) == on(3));
    }

    #[test]
    #[should_panic(expected = "leaves its slice")]
    fn a_matrix_that_leaves_its_slice_is_refused() {
        let a = View { values: &[0.0; 5], offset: 0, rows: 2, columns: 3, strides: [3, 1] };
        product(a, View { rows: 3, columns: 1, strides: [1, 1], ..a });
    }
}
