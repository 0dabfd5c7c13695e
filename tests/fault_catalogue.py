"""Everything that may go wrong, numbered, and the tests that show what happens then; test_fault_catalogue.py reads it.

A fault without tests says why: no test can show it, or what it concerns is not built yet.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple


class Fault(NamedTuple):
    """One entry of the catalogue.

    Attributes:
        what: goes wrong.
        tests: a file and a colon, then tests in it, as often as needed; all names without their `test_`.
        why: there is no test, or not one of everything.
    """

    what: str
    tests: str = ""
    why: str = ""

    def named_tests(self) -> Iterator[tuple[str, str]]:
        """(file, test) of each."""
        file = ""
        for word in self.tests.split():
            if word.endswith(":"):
                file = word[:-1]
            else:
                yield file, word


_RANKS = "Training on several ranks is later work; loaders and evaluation of several ranks are tested."

FAULTS: dict[int, Fault] = {
    # Conversion and its output.
    1: Fault(
        "killed while sources are listed",
        "convert: a_run_killed_outright_at_any_time_is_resumed_to_the_same_bytes",
    ),
    2: Fault("killed while a shard is written", "storage_faults: a_kill_at_any_call_loses_nothing_that_was_finished"),
    3: Fault(
        "killed between a shard's rename and what relies on it",
        """
        storage_faults: a_kill_at_any_call_loses_nothing_that_was_finished
        power_cuts: a_conversion_that_was_killed_and_resumed_before
        """,
    ),
    4: Fault(
        "killed while the manifest is written",
        """
        storage_faults: a_kill_at_any_call_loses_nothing_that_was_finished
            a_kill_while_overwriting_leaves_the_old_dataset_or_none
        merge: a_merge_that_was_killed_in_its_very_last_step_is_finished
        """,
    ),
    5: Fault(
        "killed while statistics are written",
        "storage_faults: a_kill_while_statistics_are_written_again_leaves_right_ones_or_an_error",
    ),
    6: Fault(
        "power cut",
        """
        power_cuts: a_conversion a_conversion_that_was_killed_and_resumed_before overwriting_a_dataset_with_another
            parts_and_their_merge the_model_finds_the_fault_where_nothing_is_synced
        """,
    ),
    7: Fault(
        "disk full",
        """
        storage_faults: an_error_of_the_disk_is_a_storage_error_and_publishes_nothing
        convert: a_full_disk_is_exit_code_4_and_publishes_nothing a_disk_with_too_little_room_is_refused_at_the_start
        """,
    ),
    8: Fault("fsync fails", "storage_faults: a_failed_sync_is_never_tried_again"),
    9: Fault(
        "the output holds something",
        "dataset_writer: a_directory_with_content_is_refused_and_untouched files_that_are_not_ours_are_never_touched",
    ),
    10: Fault(
        "resumed with other options",
        """
        dataset_writer: resuming_with_other_options_names_them
            resuming_a_finished_dataset_with_other_options_is_refused
        """,
    ),
    11: Fault("two converters, one output", "convert: a_second_converter_is_told_who_holds_the_output"),
    12: Fault("resumed twice at once", "dataset_writer: a_second_writer_is_told_who_holds_the_output"),
    13: Fault("locks do not work", "dataset_writer: a_disk_that_cannot_lock_is_an_error_and_not_a_gamble"),
    14: Fault(
        "a source vanishes",
        """
        sources: what_is_no_regular_file_is_rejected_without_waiting
        range_reader: a_file_that_changed_or_went_ends_the_run
        """,
    ),
    15: Fault(
        "a source changes",
        """
        range_reader: a_file_that_changed_or_went_ends_the_run
        class_archives: an_archive_that_changes_ends_the_run_and_rejects_nothing
        conversion: keys_tables_and_records_agree
        repair: a_source_file_that_changed_is_named_and_its_shard_stays
        """,
    ),
    16: Fault(
        "a source may not be read",
        "sources: a_system_error_is_a_named_rejection an_unreadable_folder_is_refused_and_not_skipped",
    ),
    17: Fault(
        "a worker dies",
        """
        shard_pool: images_that_kill_workers_are_rejects_and_nothing_else_is_lost
        shard_recovery: exactly_the_killers_are_set_aside
        convert: a_worker_that_is_killed_is_replaced_and_nothing_shows
        dask_executor: a_cluster_makes_the_same_bytes_though_a_worker_is_killed_in_the_middle
        """,
    ),
    18: Fault(
        "a decoder hangs",
        """
        shard_pool: images_that_kill_workers_are_rejects_and_nothing_else_is_lost
            a_worker_that_hangs_is_killed_when_the_run_is_stopped
        worker_limits: the_timer_ends_a_process_that_holds_the_interpreter
        """,
    ),
    19: Fault(
        "interrupted or terminated",
        """
        convert: signals_end_a_run_cleanly_and_it_can_be_resumed
            signals_at_any_time_leave_no_process_and_nothing_that_cannot_be_resumed
        process_start: a_signal_that_arrives_meanwhile_is_acted_on_afterwards
        """,
    ),
    20: Fault(
        "the terminal or the reader of our output has gone",
        """
        convert: signals_at_any_time_leave_no_process_and_nothing_that_cannot_be_resumed
            a_reader_of_our_output_that_has_left_loses_no_work
        """,
    ),
    21: Fault("the output is read-only", "storage_faults: a_read_only_output_is_refused_and_stays_as_it_is"),
    22: Fault(
        "leftovers of dead runs",
        "dataset_writer: leftovers_of_dead_runs_are_removed_and_others_kept a_part_clears_only_its_own_leftovers",
    ),
    23: Fault("a shard larger than its map", "shard_writer: records_of_noise_at_quality_100_find_room"),
    24: Fault("a disk without sparse files", "shard_writer: the_file_is_in_the_0_9_format_and_not_preallocated"),
    25: Fault(
        "names that look alike, or are no text",
        """
        sources: any_file_name_works names_that_unicode_normalises_alike_are_two_images
        conversion: names_of_any_bytes_are_converted
        tables: any_file_name_becomes_printable_utf8
        """,
    ),
    26: Fault(
        "links in circles, to nowhere, out of the tree",
        """
        sources: links_to_folders_are_not_followed_and_loops_end links_are_followed_on_request_and_loops_still_end
            links_to_files_are_taken_inside_the_tree_and_counted_outside
        """,
    ),
    # Shards, manifest, verification.
    27: Fault(
        "a bit of a value flips",
        """
        damage: flipped_bits_in_values_are_refused_by_name flipped_bits_do_not_pass_a_loader
        shard_reader: every_flip_in_the_image_bytes_is_found
        verify: every_single_bit_of_a_shard_counts
        """,
    ),
    28: Fault(
        "a bit of a tree page flips",
        """
        damage: flipped_bits_in_pages_never_give_other_records
        shard_index: a_damaged_tree_is_an_error_or_still_inside_the_file
        """,
    ),
    29: Fault(
        "a shard is cut off or extended",
        """
        damage: files_of_another_length_are_refused_before_they_are_mapped
        shard_reader: no_truncation_kills_the_process
        """,
    ),
    30: Fault("shards are missing", "shard_reader: all_missing_shards_are_named_at_once"),
    31: Fault(
        "shards are swapped",
        """
        shard_reader: swapped_shards_give_errors_and_never_each_others_records
        verify: missing_and_swapped_shards_are_named
        """,
    ),
    32: Fault(
        "a shard is of another dataset",
        """
        dataset_writer: a_shard_of_another_plan_is_not_published
        loader: a_shard_of_another_size_is_refused
        merge: the_same_shard_twice_is_no_harm_and_another_one_is
        """,
    ),
    33: Fault(
        "the manifest was edited",
        """
        manifest: an_edited_manifest_is_refused a_forged_manifest_with_a_right_digest_is_still_checked
        verify: an_edited_manifest_is_not_trusted
        """,
    ),
    34: Fault("the manifest is newer", "manifest: a_newer_major_version_is_refused_and_a_newer_minor_is_read"),
    35: Fault(
        "the manifest is older",
        """
        manifest: the_digest_is_sha256_over_sorted_compact_json
        audit: a_dataset_made_before_hashes_were_kept_is_hashed_from_its_pixels
        """,
        why=(
            "There is one version of the format so far; fields that came later are missing in some datasets, "
            "which is tested."
        ),
    ),
    36: Fault(
        "the manifest is damaged in any way",
        """
        manifest: what_is_no_manifest_is_named_and_refused a_truncated_manifest_is_refused_at_every_length
            a_huge_file_is_refused_unread a_key_that_comes_twice_is_refused
            thousands_of_random_edits_of_a_real_manifest_raise_nothing_of_anybody_elses
        """,
    ),
    37: Fault(
        "the manifest leads out of its directory",
        "manifest: a_forged_manifest_with_a_right_digest_is_still_checked",
    ),
    38: Fault(
        "read while it is written",
        """
        manifest: no_manifest_says_what_to_do
        repair: a_dataset_under_repair_is_finished_and_held
        """,
    ),
    39: Fault("replaced while it is read", "shard_reader: what_is_mapped_is_read_on_when_its_dataset_is_replaced"),
    40: Fault(
        "a shard is deleted while it is read",
        """
        shard_reader: what_is_mapped_is_read_on_when_its_dataset_is_replaced memory_stays_mapped_while_it_is_looked_at
        loader_contract: a_shard_that_vanishes_is_an_error_and_not_a_hang
        """,
    ),
    41: Fault(
        "a shard shrinks while it is mapped",
        why="The kernel ends the process with SIGBUS, and nothing inside can tell; published shards never "
        "change, so no code of ours does it.",
    ),
    42: Fault(
        "more shards than descriptors",
        """
        shard_reader: no_number_of_shards_needs_open_files
        mapped_files: no_descriptor_is_kept
        """,
    ),
    43: Fault(
        "address space",
        """
        mapped_files: terabytes_cost_addresses_only
        scale: a_table_takes_memory_where_it_is_written_and_nowhere_else
        """,
    ),
    44: Fault(
        "a file of the newer LMDB",
        """
        shard_writer: a_file_of_the_newer_engine_is_refused_in_words an_engine_that_writes_another_format_is_caught
        caffe_lmdb: a_file_of_the_newer_engine_is_recognised_and_refused
        """,
    ),
    45: Fault("a file of another kind of machine", "shard_writer: a_damaged_header_is_refused"),
    46: Fault(
        "locks of dead readers",
        """
        shard_reader: reading_writes_nothing
        shard_writer: the_shard_has_its_figures_beside_it_and_no_lock_file
        """,
    ),
    # Sources.
    47: Fault(
        "CMYK and YCCK",
        """
        decode: cmyk_jpeg_is_the_rgb_it_was_made_from ycck_jpeg_is_the_rgb_it_was_made_from
        hostile_images: every_hostile_file_is_stored_or_rejected_by_name
        """,
    ),
    48: Fault(
        "a name that lies about its bytes",
        """
        decode: misnamed_compares_the_name_with_the_bytes
        hostile_images: every_hostile_file_is_stored_or_rejected_by_name
        """,
    ),
    49: Fault(
        "gray, deep, palette, alpha",
        """
        decode: every_mode_of_every_format_is_what_pillow_says sixteen_bit_samples_are_divided_by_257_and_rounded
            alpha_is_dropped_and_the_hidden_colour_stays transparent_palette_entries_keep_their_colour
        """,
    ),
    50: Fault("animations", "decode: an_animation_gives_its_first_frame"),
    51: Fault(
        "EXIF orientation, right, wrong or damaged",
        """
        decode: orientation_is_ignored_unless_asked_for an_invalid_orientation_is_ignored
            corrupt_exif_is_never_an_error
        conversion: the_exif_orientation_is_followed_only_when_asked
        """,
    ),
    52: Fault(
        "cut short, or with something behind",
        """
        decode: a_jpeg_cut_anywhere_is_rejected_as_truncated a_jpeg_cut_and_closed_again_is_not_filled_with_gray
            junk_after_the_end_is_accepted other_formats_cut_short_are_rejected
        """,
    ),
    53: Fault(
        "a decompression bomb",
        """
        decode: a_decompression_bomb_is_refused_by_its_header the_pixel_limit_is_inclusive_and_settable
            a_side_beyond_what_opencv_takes_is_a_rejection_and_no_exception
        hostile_images: every_hostile_file_is_stored_or_rejected_by_name
        """,
    ),
    54: Fault(
        "one pixel wide",
        """
        resize: any_picture_becomes_an_own_square extreme_shapes_cost_bounded_memory
        bicubic_filter: a_picture_of_65500_by_1_pixels_is_one_flat_square
        """,
    ),
    55: Fault(
        "no regular file",
        """
        sources: what_is_no_regular_file_is_rejected_without_waiting an_empty_file_is_read_and_a_huge_one_is_not
            a_pipe_and_a_wrong_format_are_refused
        """,
    ),
    56: Fault("files that systems leave behind", "sources: what_is_no_image_is_counted_by_reason"),
    57: Fault(
        "empty classes, empty sources",
        """
        sources: an_empty_class_keeps_its_number an_empty_folder_is_refused
            class_folders_without_images_are_refused_with_what_was_ignored
        dataset_writer: nothing_stored_is_nothing_published
        """,
    ),
    58: Fault(
        "training and validation have other classes",
        """
        sources: a_validation_set_takes_its_numbers_from_the_training_set
            a_class_that_training_did_not_have_is_an_error_that_names_it
        trainer: different_classes_are_refused
        """,
    ),
    59: Fault(
        "labels that cannot be",
        """
        sources: a_label_beyond_the_class_list_is_refused a_bad_line_is_named
        parquet_columns: rows_without_a_label_are_refused_by_number
        webdataset: labels_are_checked_against_the_class_list
        caffe_lmdb: labels_are_checked_against_the_class_list
        """,
    ),
    60: Fault(
        "tar archives",
        """
        tar_scan: an_archive_cut_anywhere_before_its_end_is_refused_with_the_place names_are_tidied
            what_is_no_plain_file_is_counted sparse_files_are_counted_whatever_their_format
            long_and_strange_names_are_kept_and_harm_nobody of_members_of_one_name_the_last_counts
            sizes_above_eight_gib_are_understood hostile_headers_are_refused_at_once
            compressed_archives_are_refused_with_the_program_to_run archives_with_changed_bytes_are_refused_or_read
        """,
    ),
    61: Fault(
        "Parquet files",
        """
        parquet_columns: what_is_no_parquet_is_refused a_file_cut_short_is_refused_wherever_it_ends
            other_schemas_are_refused_with_what_there_is damaged_labels_are_an_error_of_ours_or_labels
        parquet_reader: a_row_without_bytes_is_a_named_reject a_file_that_is_gone_changed_or_damaged_stops_the_run
        parquet_scan: a_file_that_crashes_the_reader_takes_no_more_than_its_scan
        """,
    ),
    # Loader.
    62: Fault(
        "forked after opening",
        """
        shard_reader: a_forked_child_reads_what_its_parent_has_open
        loader_lifetime: a_forked_process_reads_what_its_parent_is_reading
            a_loader_does_not_work_in_a_forked_process_and_says_so
        """,
    ),
    63: Fault(
        "spawned",
        """
        shard_reader: a_reader_travels_to_a_spawned_process
        loader_lifetime: a_started_process_reads_what_its_parent_is_reading
        """,
    ),
    64: Fault(
        "a worker of a loader fails",
        """
        loader_contract: a_damaged_record_surfaces_with_its_name_after_the_sound_batches
            after_an_error_the_loader_can_be_used_and_the_damage_is_not_passed_over
        """,
        why=("Its workers are threads, which cannot be killed alone."),
    ),
    65: Fault(
        "two loaders on one dataset",
        """
        loader_contract: two_loaders_on_one_dataset_do_not_disturb_each_other
            closing_one_of_two_loaders_leaves_the_other_whole
        """,
    ),
    66: Fault(
        "a consumer stops early",
        """
        loader_lifetime: a_hundred_aborted_loaders_leave_no_thread_and_no_descriptor
            another_thread_may_close_a_loader_that_is_iterated
            a_signal_handler_may_close_the_loader_that_it_interrupts
        loader_contract: an_exception_in_the_loop_leaves_a_usable_loader
            a_loader_that_is_dropped_unclosed_lets_its_threads_end
        """,
    ),
    67: Fault(
        "fewer samples than a batch, uneven ranks",
        """
        loader_contract: a_set_smaller_than_a_batch evaluation_covers_each_sample_once_for_any_world
            more_ranks_than_samples_still_deliver_each_sample_once
        """,
    ),
    # Remote shards and their cache.
    68: Fault(
        "not found, forbidden",
        """
        remote_file: what_will_not_pass_fails_at_once
        streamed_reader: a_shard_that_cannot_be_had_is_named_and_not_kept an_address_without_a_dataset_is_told
        """,
    ),
    69: Fault(
        "server errors, lost connections",
        """
        remote_file: what_may_pass_is_tried_again_and_the_right_bytes_arrive
            pauses_double_and_retry_after_is_honoured a_server_that_is_not_there_is_given_up
            a_server_that_asks_for_more_time_than_there_is_ends_it
        """,
    ),
    70: Fault(
        "a slow or silent server",
        """
        remote_file: a_server_that_is_too_slow_is_left_for_another_try a_stalled_read_ends
        streamed_reader: closing_does_not_wait_for_a_server_that_hangs
            a_program_ends_while_its_server_says_nothing
        """,
    ),
    71: Fault(
        "a short, long or other answer",
        """
        remote_file: what_may_pass_is_tried_again_and_the_right_bytes_arrive
            what_never_passes_is_given_up_and_nothing_wrong_is_kept rubbish_that_is_there_is_thrown_away
        """,
    ),
    72: Fault(
        "the right length and wrong bytes",
        """
        remote_file: what_never_passes_is_given_up_and_nothing_wrong_is_kept
        streamed_reader: wrong_bytes_are_never_delivered
        """,
    ),
    73: Fault(
        "a remote dataset changes",
        """
        streamed_reader: a_dataset_that_changes_is_an_error
        dataset_argument: a_training_from_addresses_resumes_with_a_cold_cache_to_the_same_weights
        """,
    ),
    74: Fault(
        "the cache is full",
        """
        streamed_reader: a_cache_of_two_blocks_is_enough_and_never_exceeded
        cache_check: a_full_disk_is_refused_with_both_numbers
        """,
    ),
    75: Fault(
        "the cache is smaller than a shard",
        """
        cache_check: a_limit_below_the_largest_shard_is_refused_with_both_numbers
        streamed_reader: a_cache_that_is_too_small_is_refused_with_numbers
        """,
    ),
    76: Fault(
        "processes share a cache",
        """
        shard_cache: processes_on_a_small_cache_agree_while_they_are_killed
            each_shard_is_fetched_once_however_many_processes_ask the_next_in_line_goes_on_where_a_killed_process_was
        """,
    ),
    77: Fault(
        "evicted while it is read",
        """
        shard_cache: a_shard_in_use_is_not_removed_by_anybody
        streamed_reader: arrays_that_are_kept_stay_readable
        """,
    ),
    78: Fault(
        "damage inside the cache",
        """
        shard_cache: a_damaged_shard_counts_as_none
        streamed_reader: a_shard_that_is_damaged_in_the_cache_is_fetched_again
        """,
    ),
    79: Fault(
        "a cache that cannot be written",
        """
        cache_check: a_cache_that_cannot_be_written_is_refused a_cache_on_a_network_disk_is_refused
        shard_cache: a_cache_that_cannot_be_written_is_a_storage_error
        """,
    ),
    80: Fault(
        "clocks that are wrong",
        "shard_cache: the_least_recently_used_goes_first_whatever_the_clock_of_the_machine_says",
    ),
    81: Fault(
        "leftovers of dead downloads",
        """
        remote_file: another_process_goes_on_with_what_is_there
        shard_cache: what_was_abandoned_is_gone_on_with_by_the_next
        """,
    ),
    82: Fault(
        "no shared memory",
        why="Loaders use threads of one process and no shared memory of their own.",
    ),
    83: Fault(
        "credentials in addresses",
        """
        remote_file: credentials_are_in_no_message
        remote_address: what_is_shown_has_no_secrets
        dataset_place: what_is_kept_and_shown_has_no_secrets
        dataset_argument: what_needs_a_directory_says_how_to_get_one
        """,
    ),
    # Checkpoints and training.
    84: Fault(
        "killed while a checkpoint is saved",
        """
        trainer: a_run_killed_at_any_step_resumes_to_the_same_end
        checkpoint: saving_leaves_one_file_and_replaces_the_old_one
        files: a_failure_before_the_rename_leaves_the_old_file
        """,
        why=("Checkpoints are written by the same `write_atomic` that conversions are killed in at every call."),
    ),
    85: Fault(
        "no room for a checkpoint",
        "files: a_full_disk_is_named_with_what_is_free a_failure_before_the_rename_leaves_the_old_file",
    ),
    86: Fault(
        "a damaged checkpoint",
        """
        checkpoint: a_truncated_file_is_refused no_flipped_bit_of_the_content_goes_unnoticed
            the_newest_whole_checkpoint_is_found_behind_damaged_ones
        trainer: a_damaged_newest_checkpoint_costs_steps_but_not_the_result
            all_checkpoints_damaged_is_an_error_not_a_fresh_start
        """,
    ),
    87: Fault(
        "a checkpoint of another run",
        """
        checkpoint: another_run_is_refused_with_the_differing_fields
        trainer: another_network_or_dataset_is_refused
        """,
    ),
    88: Fault(
        "resumed in the middle of an epoch",
        """
        trainer: a_run_killed_at_any_step_resumes_to_the_same_end metrics_hold_each_step_and_each_epoch_once
        resume: a_run_stopped_after_each_single_batch_is_the_run_that_never_was
        """,
    ),
    89: Fault(
        "resumed by other ranks or batches",
        "resume: each_sample_comes_once_whatever_ranks_and_batch_sizes_go_on",
    ),
    90: Fault(
        "resumed twice, at the start, at the end",
        """
        trainer: resuming_where_nothing_was_saved_starts_from_the_beginning resuming_a_finished_run_trains_nothing
        loader_contract: resuming_twice_is_resuming_once
        """,
    ),
    91: Fault("old checkpoints are removed", "checkpoint: the_newest_few_are_kept_and_the_best"),
    92: Fault("a loss that is no number", "trainer: a_loss_that_is_not_finite_stops_with_step_and_samples"),
    93: Fault(
        "a loss scaler that underflows",
        why="Half precision trains in bfloat16, which needs no loss scaler.",
    ),
    94: Fault("a rank dies", why=_RANKS),
    95: Fault("a rank hangs", why=_RANKS),
    96: Fault("ranks disagree", "rank_agreement: every_rank_is_told_each_ranks_value many_ranks_are_told_in_one_line"),
    97: Fault(
        "fewer GPUs than asked for, or none",
        """
        loader: devices_that_are_not_there_are_refused decoding_on_a_gpu_needs_one
            without_a_gpu_the_cpu_is_chosen_and_the_reason_given
        decode_choice: without_dali_the_reason_names_the_line_that_installs_it
        """,
    ),
    98: Fault(
        "no memory left on the GPU",
        why="Needs a training run that fills a GPU: later work.",
    ),
    99: Fault("the port of the meeting point is taken", why=_RANKS),
    100: Fault(
        "told to stop",
        """
        trainer: a_signal_finishes_the_step_and_the_resumed_run_equals_the_undisturbed_one
        train: a_signal_ends_in_its_own_exit
        """,
        why=_RANKS,
    ),
    101: Fault(
        "metrics cannot be written",
        why="Training that outlives its journal's disk is later work.",
    ),
    102: Fault(
        "evaluation by several ranks",
        """
        resume: evaluation_counts_each_sample_once_also_with_more_ranks_than_samples
        loader_contract: evaluation_covers_each_sample_once_for_any_world
        """,
    ),
}
