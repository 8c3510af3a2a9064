//! Tables for the terminal.

use comfy_table::{CellAlignment, ContentArrangement, Table, TableComponent, presets};

/// Columns of a terminal that reports none: in an editor, on a serial line, or if the size was
/// never set.
pub const COLUMNS: u16 = 80;

/// A table that fits the terminal.
pub fn fitting() -> Table {
    let mut table = Table::new();
    if table.width() == Some(0) {
        table.set_width(COLUMNS);
    }
    table
}

/// A table with a line under its header and right-aligned cells after the first column.
pub fn plain(header: &[&str]) -> Table {
    let mut table = fitting();
    table.load_preset(presets::UTF8_HORIZONTAL_ONLY).set_content_arrangement(ContentArrangement::Dynamic);
    for lines in [TableComponent::HorizontalLines, TableComponent::MiddleIntersections] {
        table.remove_style(lines);
    }
    table.set_header(header);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}
