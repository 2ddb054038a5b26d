# comment
a = 0600 /* block */
b "label" "two" { c = [1, "x", true, {d = -1.5e3}] }
"quoted key" = "esc \n \u00e9 ${HOME} $$"
text = <<-END
    indented
      more
    END
empty = {}
